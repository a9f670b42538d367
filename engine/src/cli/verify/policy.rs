//! The policy that `verify` uses: the configured one, with what `kms_root = own` stands for.

use attest::Policy;
use attest::agent::{Agent, AgentAddresses, AgentOptions};
use attest::chain::KmsRoot;

use super::error::UsageError;
use crate::cli::ca::request_chain;
use crate::tls::certificate_source::{CertificateRequest, CertificateUsage};

/// Asks the guest agent for the root that `kms_root = own` means, if the policy says so.
///
/// # Errors
/// The guest agent is not available, or its chain has no CA.
pub(super) fn resolve(policy: Policy, addresses: AgentAddresses) -> Result<Policy, UsageError> {
    if !policy.needs_own_root() {
        return Ok(policy);
    }
    let failed = |error: String| UsageError::unavailable(format!("kms_root = own: {error}"));
    let agent = Agent::new(addresses, AgentOptions::default());
    let agent = agent.map_err(|error| failed(error.to_string()))?;
    let runtime = crate::app::runtime::new_current_thread();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    let request = CertificateRequest {
        name: "teesql-sidecar verify".to_owned(),
        alt_names: Vec::new(),
        validity: std::time::Duration::from_secs(60),
        usage: CertificateUsage::Client,
    };
    let chain = runtime.block_on(request_chain(&agent, &request));
    let chain = chain.map_err(|error| failed(error.to_string()))?;
    let issuer = chain.get(1..).and_then(<[_]>::last);
    let root = issuer.and_then(|der| KmsRoot::from_der(der).ok());
    let root =
        root.ok_or_else(|| failed("the guest agent's chain has no CA certificate".into()))?;
    Ok(policy.with_own_root(Some(root)))
}
