//! Verifiers: by DCAP, by Intel Trust Authority, and none.

use async_trait::async_trait;
use dcap_qvl::QuoteCollateralV3;
use engine::embed::{self, Options};
use zeroize::Zeroizing;

use super::native::{Native, Secret};
use super::types::{RaTlsVerifier, VerificationResult, VerifyError, VerifyOptions};

/// Intel's service.
pub const DEFAULT_PCCS_URL: &str = "https://api.trustedservices.intel.com";
/// Intel Trust Authority in the US.
pub const ITA_BASE_US: &str = "https://api.trustauthority.intel.com";
/// Intel Trust Authority in the EU.
pub const ITA_BASE_EU: &str = "https://api.eu.trustauthority.intel.com";

/// The settings of a verification.
fn options_of(native: &Native, options: &VerifyOptions) -> Options {
    let mut settings = Options::default();
    for (name, value) in native.settings(&options.allowed_mr_td, options.allow_debug_mode) {
        settings.set(name, value);
    }
    settings
}

async fn verify_natively(
    native: &Native,
    quote: &[u8],
    options: &VerifyOptions,
) -> Result<VerificationResult, VerifyError> {
    let verified = embed::verify_quote(quote.to_vec(), &options_of(native, options)).await?;
    Ok(verified.claims.into())
}

/// Verifies quotes on this machine, with Intel's collateral.
#[derive(Debug, Clone)]
pub struct DcapVerifier {
    pccs_url: String,
}

impl Default for DcapVerifier {
    fn default() -> Self {
        Self::new()
    }
}

impl DcapVerifier {
    /// With collateral from Intel.
    #[must_use]
    pub fn new() -> Self {
        Self::with_pccs_url(DEFAULT_PCCS_URL)
    }

    /// With collateral from another PCCS.
    #[must_use]
    pub fn with_pccs_url(pccs_url: impl Into<String>) -> Self {
        Self {
            pccs_url: pccs_url.into(),
        }
    }

    /// The PCCS.
    #[must_use]
    pub fn pccs_url(&self) -> &str {
        &self.pccs_url
    }

    /// Verifies a quote with this collateral as of `now_secs`, in Unix seconds, without a request.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify_with_collateral(
        &self,
        quote: &[u8],
        collateral: &QuoteCollateralV3,
        now_secs: u64,
        options: &VerifyOptions,
    ) -> Result<VerificationResult, VerifyError> {
        let json = serde_json::to_vec(collateral)
            .map_err(|error| VerifyError::Service(error.to_string()))?;
        let settings = options_of(&self.native(), options);
        let verified = embed::verify_quote_with_collateral(quote, &json, now_secs, &settings)?;
        Ok(verified.claims.into())
    }
}

#[async_trait]
impl RaTlsVerifier for DcapVerifier {
    async fn verify(
        &self,
        quote: &[u8],
        options: &VerifyOptions,
    ) -> Result<VerificationResult, VerifyError> {
        verify_natively(&self.native(), quote, options).await
    }

    fn native(&self) -> Native {
        Native::Dcap(self.pccs_url.clone())
    }
}

/// A region of Intel Trust Authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// The US.
    Us,
    /// The EU.
    Eu,
}

/// Has Intel Trust Authority verify quotes.
#[derive(Debug, Clone)]
pub struct IntelApiVerifier {
    api_key: Secret,
    base_url: String,
}

impl IntelApiVerifier {
    /// In the US.
    #[must_use]
    pub fn new(api_key: impl Into<String>) -> Self {
        Self::with_region(api_key, Region::Us)
    }

    /// In a region.
    #[must_use]
    pub fn with_region(api_key: impl Into<String>, region: Region) -> Self {
        let base = match region {
            Region::Us => ITA_BASE_US,
            Region::Eu => ITA_BASE_EU,
        };
        Self::with_base_url(api_key, base)
    }

    /// At another URL: one of Intel's, or of this machine. Others could accept any quote.
    #[must_use]
    pub fn with_base_url(api_key: impl Into<String>, base_url: impl Into<String>) -> Self {
        Self {
            api_key: Secret(Zeroizing::new(api_key.into())),
            base_url: base_url.into(),
        }
    }
}

#[async_trait]
impl RaTlsVerifier for IntelApiVerifier {
    async fn verify(
        &self,
        quote: &[u8],
        options: &VerifyOptions,
    ) -> Result<VerificationResult, VerifyError> {
        verify_natively(&self.native(), quote, options).await
    }

    fn native(&self) -> Native {
        Native::TrustAuthority(self.base_url.clone(), self.api_key.clone())
    }
}

/// Accepts every quote that belongs to the key of the server's certificate. Any server can present such a quote: for development only.
#[derive(Debug, Clone, Default)]
pub struct NoopVerifier(());

impl NoopVerifier {
    /// Logs a warning.
    #[must_use]
    pub fn new() -> Self {
        tracing::warn!(
            "NoopVerifier: servers are not verified, so that connections are open to man-in-the-middle attacks"
        );
        Self(())
    }
}

#[async_trait]
impl RaTlsVerifier for NoopVerifier {
    async fn verify(&self, _: &[u8], _: &VerifyOptions) -> Result<VerificationResult, VerifyError> {
        let zeros = || "0".repeat(96);
        Ok(VerificationResult {
            mr_td: zeros(),
            rtmr0: zeros(),
            rtmr1: zeros(),
            rtmr2: zeros(),
            rtmr3: zeros(),
            tcb_status: "UpToDate".to_owned(),
            is_debug_mode: false,
        })
    }

    fn native(&self) -> Native {
        Native::Noop
    }
}
