//! `teesql-sidecar verify`: verifies a certificate, server or quote like the gate, and reports every
//! check.
//!
//! All checks and the verdict are the gate's: [`attest::Verifier::inspect`] runs them under an observer,
//! continues after the first refusal, and this module renders what the observer saw. This code may block,
//! since it never runs on a shard.
//!
//! It must never send a server anything after the handshake except close_notify, nor print text from
//! a peer without escaping it.

mod address;
mod checks;
mod collateral;
mod command;
mod error;
mod input;
mod json;
mod policy;
mod report;
mod text;

use clap::ArgMatches;

use crate::cli::output::CommandOutput;
use crate::config::{Criteria, Layers, Scope};
use crate::tls::probe;
use checks::Checker;
use collateral::CollateralSource;
use command::{Format, Options};
use error::UsageError;
use input::{Input, Material};
use report::Report;

pub use command::command;

/// Executes `verify`. The exit codes are listed in its help.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    match verify(flags) {
        Ok((report, format)) => {
            let text = match (format, report.verdict.peer()) {
                (Format::Policy, Some(peer)) => text::render_policy(&report, peer),
                (Format::Text | Format::Policy, _) => text::render(&report),
                (Format::Json, _) => json::render(&report),
            };
            CommandOutput::text(text).with_code(report.verdict.exit_code())
        }
        Err(UsageError { exit_code, errors }) => CommandOutput::errors(exit_code, &errors),
    }
}

fn verify(flags: &ArgMatches) -> Result<(Report, Format), UsageError> {
    let layers = Layers::from_process(Scope::Criteria, flags);
    let criteria = Criteria::from_layers(&layers).map_err(|errors| UsageError::usage(errors.0))?;
    let options = Options::read(flags)?;
    let policy = match options.format {
        Format::Policy => criteria.policy.without_entries(),
        Format::Text | Format::Json => policy::resolve(criteria.policy, criteria.guest_agent)?,
    };
    let checker = Checker::new(
        policy,
        criteria.root,
        CollateralSource::new(options.collateral, criteria.source)?,
        options.at.unwrap_or_else(crate::io::clock::unix_now),
    );
    let input = Input::find(&options.subject, options.kind)?;
    let name = input.name().to_owned();
    let (kind, result) = match input {
        Input::Server(address) => {
            let result = match probe::probe(&address.host, address.port, &options.server) {
                Ok(presented) => checker.server(&presented),
                Err(error) => checker.probe_failed(error),
            };
            ("server", result)
        }
        Input::File { material, .. } => match material {
            Material::Certificates(chain) => ("certificate", checker.chain(&chain)),
            Material::Attestation(bytes) => ("attestation", checker.attestation(&bytes)),
            Material::Quote(bytes) => ("quote", checker.quote(&bytes)),
        },
    };
    Ok((checker.report(kind, &name, result), options.format))
}
