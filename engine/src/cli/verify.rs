//! `teesql-sidecar verify`: the gate's verdict about any certificate, server or
//! quote, told step by step.
//!
//! The verdict about a certificate is that of [`attest::examine`] and
//! [`attest::Verifier::verify`], the gate's own two calls; the steps call what
//! these two are made of, one by one, so that those behind the first refusal can
//! be told too. Everything here may block: it is a command, not a shard.
//! It must never send a server anything behind the handshake, nor print what a
//! peer wrote unescaped.

mod checks;
mod command;
mod input;
mod json;
mod report;
mod server;
mod text;
mod verifier;

use clap::ArgMatches;

use crate::config::{Criteria, Layers};
use checks::Judge;
use command::{Format, Options};
use input::{Input, Material};
use report::Report;
use verifier::Origin;

pub use command::command;

use crate::cli::output::{CommandOutput, EX_NOINPUT, EX_USAGE};

/// Why there is no report.
struct Mistake {
    code: u8,
    errors: Vec<String>,
}

impl Mistake {
    fn usage(errors: Vec<String>) -> Self {
        let code = EX_USAGE;
        Self { code, errors }
    }

    fn no_input(error: impl Into<String>) -> Self {
        Self {
            code: EX_NOINPUT,
            errors: vec![error.into()],
        }
    }
}

/// Carries `verify` out. `layers` are of
/// [`Scope::Criteria`](crate::config::Scope::Criteria). The exit codes are in
/// docs/reference/cli.md.
#[must_use]
pub fn execute(flags: &ArgMatches, layers: &Layers) -> CommandOutput {
    match judge(flags, layers) {
        Ok((report, format)) => {
            let text = match format {
                Format::Text => text::render(&report),
                Format::Json => json::render(&report),
            };
            CommandOutput::text(text).with_code(report.verdict.exit_code())
        }
        Err(Mistake { code, errors }) => CommandOutput::errors(code, &errors),
    }
}

fn judge(flags: &ArgMatches, layers: &Layers) -> Result<(Report, Format), Mistake> {
    let criteria = Criteria::from_layers(layers).map_err(|errors| Mistake::usage(errors.0))?;
    let options = Options::read(flags)?;
    let judge = Judge::new(
        criteria.policy,
        criteria.root,
        Origin::new(options.collateral, criteria.source)?,
        options.at.unwrap_or_else(crate::io::clock::unix_now),
    );
    let input = Input::find(&options.name, options.kind)?;
    let subject = input.name().to_owned();
    let (kind, told) = match input {
        Input::Server(address) => {
            let told = match server::ask(&address, &options.server) {
                Ok(presented) => judge.server(&presented),
                Err(trouble) => judge.unreached(trouble),
            };
            ("server", told)
        }
        Input::File { material, .. } => match material {
            Material::Certificates(chain) => ("certificate", judge.chain(&chain)),
            Material::Attestation(bytes) => ("attestation", judge.attestation(&bytes)),
            Material::Quote(bytes) => ("quote", judge.quote(&bytes)),
        },
    };
    Ok((judge.report(kind, &subject, told), options.format))
}
