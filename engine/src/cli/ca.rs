//! `teesql-sidecar ca`: prints the CA certificate that clients need for `sslmode=verify-full`.

use std::path::Path;

use attest::agent::{Agent, AgentError, AgentOptions};
use clap::{ArgMatches, Command};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::cli::output::{CommandOutput, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{CertificateConfig, IdentitySource, Layers, Scope, with_flags};
use crate::io::clock::unix_now;
use crate::tls::certificate_source::CertificateRequest;

/// The subcommand `ca`.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("ca").about(
        "Print the CA of the sidecar's certificate (PEM): the sslrootcert for sslmode=verify-full",
    );
    with_flags(command, Scope::Agent)
}

/// Executes `ca`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let layers = Layers::from_process(Scope::Agent, flags);
    let certificate = match CertificateConfig::from_layers(&layers) {
        Ok(certificate) => certificate,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    match certificate.identity {
        IdentitySource::Files { cert, .. } => from_file(&cert),
        IdentitySource::Agent(request) => {
            let agent = match Agent::new(certificate.guest_agent, AgentOptions::default()) {
                Ok(agent) => agent,
                Err(error) => return CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
            };
            from_agent(&agent, &request)
        }
    }
}

fn from_agent(agent: &Agent, request: &CertificateRequest) -> CommandOutput {
    let runtime = match crate::app::runtime::new_current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return CommandOutput::error(EX_OSERR, error.to_string()),
    };
    match runtime.block_on(request_chain(agent, request)) {
        Ok(chain) => print_ca(&chain),
        Err(error) => CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
    }
}

/// Requests a certificate like the sidecar's, but without evidence, which would need a quote.
pub(crate) async fn request_chain(
    agent: &Agent,
    request: &CertificateRequest,
) -> Result<Vec<Vec<u8>>, AgentError> {
    let without_evidence = attest::agent::TlsKeyRequest {
        usage_ra_tls: false,
        ..request.tls_key_request(unix_now())
    };
    Ok(agent.tls_key(&without_evidence).await?.chain_der().to_vec())
}

fn from_file(cert: &Path) -> CommandOutput {
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let chain: Vec<CertificateDer<'_>> = match chain {
        Ok(chain) => chain,
        Err(error) => {
            return CommandOutput::error(EX_USAGE, format!("{}: {error}", cert.display()));
        }
    };
    print_ca(&chain)
}

/// The CA is the last certificate of the chain.
fn print_ca(chain: &[impl AsRef<[u8]>]) -> CommandOutput {
    match chain.last() {
        Some(ca) => CommandOutput::text(attest::agent::certificate_pem(ca.as_ref())),
        None => CommandOutput::error(EX_USAGE, "no certificate in the chain".to_owned()),
    }
}
