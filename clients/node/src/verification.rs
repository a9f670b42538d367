//! Verification without a forwarder.

use std::time::Duration;

use napi::bindgen_prelude::{Buffer, Function};
use napi_derive::napi;
use teesql::{ServerOptions, Verified};

use crate::error::{Arguments, Outcome, outcome};
use crate::executor;
use crate::forwarder::milliseconds;
use crate::options::{IdentityParts, PolicyRules, duration};
use crate::verifier::{ClaimsParts, JsVerifier, Question};

#[napi(object)]
pub struct VerifiedParts {
    pub claims: ClaimsParts,
    pub quote: Buffer,
    pub chain: Vec<Buffer>,
    pub fingerprint: String,
    /// In milliseconds since 1970.
    pub valid_until: f64,
}

impl From<Verified> for VerifiedParts {
    fn from(verified: Verified) -> Self {
        Self {
            claims: ClaimsParts::from(&verified.claims),
            quote: verified.quote.into(),
            chain: verified.chain.into_iter().map(Buffer::from).collect(),
            fingerprint: verified.fingerprint,
            valid_until: milliseconds(verified.valid_until),
        }
    }
}

#[napi(catch_unwind)]
pub fn verify(
    quote: Buffer,
    policy: PolicyRules,
    done: Function<'_, Arguments<VerifiedParts>, ()>,
) -> napi::Result<()> {
    let (quote, policy) = (quote.to_vec(), policy.into_policy());
    executor::run(&done, async move {
        Ok(teesql::verify(&quote, &policy).await?.into())
    })
}

#[napi(catch_unwind)]
pub fn verify_certificate(
    chain: Vec<Buffer>,
    policy: PolicyRules,
    done: Function<'_, Arguments<VerifiedParts>, ()>,
) -> napi::Result<()> {
    let chain = teesql::bindings::certificates(&chain);
    let policy = policy.into_policy();
    executor::run(&done, async move {
        Ok(teesql::verify_certificate(&chain?, &policy).await?.into())
    })
}

/// The options of `verifyServer`. Times are in milliseconds.
#[napi(object)]
pub struct ServerSettings {
    pub identity: Option<IdentityParts>,
    pub timeout: Option<u32>,
    pub verifier_instead_of_dcap: bool,
    pub verifier_timeout: Option<u32>,
}

impl ServerSettings {
    fn into_options(self, verifier: Option<JsVerifier>) -> ServerOptions {
        let mut options = ServerOptions::default();
        if let Some(identity) = self.identity {
            options = options.identity(identity.into_identity());
        }
        if let Some(timeout) = self.timeout {
            options = options.timeout(duration(timeout));
        }
        if let Some(timeout) = self.verifier_timeout {
            options = options.verifier_timeout(duration(timeout));
        }
        match verifier {
            None => options,
            Some(verifier) if self.verifier_instead_of_dcap => {
                options.dangerous_verifier_instead_of_dcap(verifier)
            }
            Some(verifier) => options.verifier(verifier),
        }
    }
}

#[napi(catch_unwind)]
pub fn verify_server(
    host: String,
    port: u16,
    policy: PolicyRules,
    settings: ServerSettings,
    ask: Option<Function<'_, Question, ()>>,
    done: Function<'_, Arguments<VerifiedParts>, ()>,
) -> napi::Result<()> {
    let verifier = ask.map(|ask| JsVerifier::new(&ask)).transpose()?;
    let (policy, options) = (policy.into_policy(), settings.into_options(verifier));
    executor::run(&done, async move {
        let verified = teesql::verify_server(&host, port, &policy, &options).await?;
        Ok(verified.into())
    })
}

#[napi(catch_unwind)]
pub fn extract_tdx_quote(certificate: Buffer) -> Option<Buffer> {
    teesql::extract_tdx_quote(&certificate).map(Buffer::from)
}

#[napi(catch_unwind)]
pub fn read_quote(quote: Buffer) -> Outcome<ClaimsParts> {
    outcome(teesql::read_quote(&quote).map(|claims| ClaimsParts::from(&claims)))
}

#[napi(catch_unwind)]
pub fn expected_report_data(public_key: Buffer) -> Buffer {
    teesql::expected_report_data(&public_key).to_vec().into()
}

#[napi(object)]
pub struct CertificateParts {
    pub chain_pem: String,
    pub key_pem: String,
}

#[napi(catch_unwind)]
pub fn request_client_certificate(
    address: Option<String>,
    timeout: u32,
    done: Function<'_, Arguments<CertificateParts>, ()>,
) -> napi::Result<()> {
    let timeout: Duration = duration(timeout);
    executor::run(&done, async move {
        let certificate = teesql::request_client_certificate(address.as_deref(), timeout).await?;
        Ok(CertificateParts {
            chain_pem: certificate.chain_pem.clone(),
            key_pem: certificate.key_pem.to_string(),
        })
    })
}

#[napi(catch_unwind)]
pub fn reason_codes() -> Vec<&'static str> {
    teesql::reason_codes()
}
