//! `teesql-sidecar manifest-address`: prints the address that signs this cluster's leader manifests, which clients are
//! configured to trust.

use attest::agent::{Agent, AgentOptions};
use attest::manifest::SigningKey;
use clap::{ArgMatches, Command};

use crate::cli::output::{CommandOutput, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{Layers, ManifestKeyConfig, Scope, with_flags};
use crate::tasks::manifest_publisher::derive_key;

/// The subcommand `manifest-address`.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("manifest-address").about(
        "Print the Ethereum address that signs the leader manifest: the manifest_signer of forwarders",
    );
    with_flags(command, Scope::Manifest)
}

/// Executes `manifest-address`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let layers = Layers::from_process(Scope::Manifest, flags);
    let config = match ManifestKeyConfig::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let warnings = config.warnings.clone();
    let output = match resolve_key(config) {
        Ok(key) => CommandOutput::text(key.address().to_checksummed() + "\n"),
        Err(output) => output,
    };
    output.with_warnings(&warnings)
}

fn resolve_key(config: ManifestKeyConfig) -> Result<SigningKey, CommandOutput> {
    if let Some(key) = config.key {
        return Ok(key);
    }
    let runtime = crate::app::runtime::new_current_thread()
        .map_err(|error| CommandOutput::error(EX_OSERR, error.to_string()))?;
    let unavailable = |error| CommandOutput::error(EX_UNAVAILABLE, error);
    let agent = Agent::new(config.guest_agent, AgentOptions::default());
    let agent = agent.map_err(|error| unavailable(error.to_string()))?;
    runtime.block_on(derive_key(&agent)).map_err(unavailable)
}
