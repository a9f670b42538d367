//! The one door to a PostgreSQL inside a confidential VM.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use engine::config::{Config, Errors, Layers, command};
use engine::identity::tls_config;
use engine::serve::{self, Outcome};

// glibc's malloc costs rustls' bulk sends a factor of two in published runs
// (docs/decisions/allocator.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// sysexits.h: the configuration or the command line is wrong.
const EX_USAGE: u8 = 64;
/// sysexits.h: an operating system error.
const EX_OSERR: u8 = 71;

fn main() -> ExitCode {
    let app = Command::new("teesql-sidecar")
        .about("TLS and login in front of a PostgreSQL inside a confidential VM")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(command("serve", "Run the sidecar"))
        .subcommand(command(
            "check",
            "Check the configuration and show what would be used",
        ));
    let matches = match app.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match matches.subcommand() {
        Some(("serve", flags)) => serve(flags),
        Some(("check", flags)) => check(flags),
        _ => ExitCode::from(EX_USAGE),
    }
}

fn layers(flags: &ArgMatches) -> Layers {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    Layers::gather(flags, |name| std::env::var_os(name), names)
}

fn serve(flags: &ArgMatches) -> ExitCode {
    let config = match Config::from_layers(&layers(flags)) {
        Ok(config) => config,
        Err(errors) => return usage(&errors),
    };
    forbid_core_dumps();
    let log = engine::log::init(config.log_format, config.log.clone());
    let reload = || Config::from_layers(&layers(flags));
    let code = match serve::run(config, reload) {
        Ok(Outcome::Drained) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Interrupted(signal)) => {
            tracing::warn!(signal, "stopped at once");
            ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)))
        }
        Err(error) => {
            tracing::error!(%error, "cannot go on");
            ExitCode::from(match error {
                serve::Error::Identity(_) => EX_USAGE,
                serve::Error::System { .. }
                | serve::Error::Collateral(_)
                | serve::Error::Shard(_) => EX_OSERR,
            })
        }
    };
    drop(log);
    code
}

fn check(flags: &ArgMatches) -> ExitCode {
    let layers = layers(flags);
    say(&layers.describe());
    let config = match Config::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return usage(&errors),
    };
    let asks = config.attestation.is_some();
    if let Err(error) = tls_config(&config.tls_cert, &config.tls_key, asks) {
        return usage(&Errors(vec![error.to_string()]));
    }
    for warning in &config.warnings {
        complain(&format!("warning: {warning}"));
    }
    ExitCode::SUCCESS
}

fn usage(errors: &Errors) -> ExitCode {
    for error in &errors.0 {
        complain(&format!("error: {error}"));
    }
    ExitCode::from(EX_USAGE)
}

/// A core file would hold the cluster's secrets.
fn forbid_core_dumps() {
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
fn say(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "before there is a log")]
fn complain(text: &str) {
    eprintln!("{text}");
}
