//! What a PCK certificate says about the machine below a TD.

use crate::denial::Denial;
use crate::quote::TdQuote;
use crate::values::Piid;

/// The platform's properties in its PCK certificate. Certificates of Intel's processor CA have none of
/// them. [Intel, "SGX PCK Certificate and CRL Profile", 1.3.5]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlatformClaims {
    /// The platform instance id, 1.2.840.113741.1.13.1.6.
    pub piid: Option<Piid>,
    /// Whether simultaneous multithreading is on, 1.2.840.113741.1.13.1.7.3.
    pub smt: Option<bool>,
    /// Whether packages can be added, 1.2.840.113741.1.13.1.7.1.
    pub dynamic_platform: Option<bool>,
    /// Whether Intel keeps the platform's root keys, 1.2.840.113741.1.13.1.7.2.
    pub cached_keys: Option<bool>,
}

impl PlatformClaims {
    /// Reads the PCK certificate of `quote`. It proves something only once the quote is verified.
    ///
    /// # Errors
    /// [`Denial::UnsupportedQuote`] if the certificate cannot be read.
    pub fn read(quote: &TdQuote) -> Result<Self, Denial> {
        let pck = quote.pck_certificate()?;
        let extension = dcap_qvl::intel::parse_pck_extension(&pck)
            .map_err(|_| Denial::UnsupportedQuote("its PCK certificate cannot be read"))?;
        let piid = extension.platform_instance_id.as_deref();
        Ok(Self {
            piid: piid.and_then(|piid| piid.try_into().ok()),
            smt: extension.smt_enabled,
            dynamic_platform: extension.dynamic_platform,
            cached_keys: extension.cached_keys,
        })
    }
}
