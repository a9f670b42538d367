//! The one door to a PostgreSQL inside a confidential VM.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use engine::app::lifecycle::Outcome;
use engine::app::sidecar;
use engine::cli::output::{EX_USAGE, start_error_code};
use engine::cli::{ca, password, provision, secret, verify};
use engine::config::{Config, Errors, IdentitySource, Layers, Scope, with_flags};
use engine::tls::certificate::Identity;

fn main() -> ExitCode {
    let app = Command::new("teesql-sidecar")
        .about("TLS and login in front of a PostgreSQL inside a confidential VM")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(settings("serve", "Run the sidecar"))
        .subcommand(settings(
            "check",
            "Check the configuration and show what would be used",
        ))
        .subcommand(provision::command())
        .subcommand(password::command())
        .subcommand(ca::command())
        .subcommand(dev_command())
        .subcommand(secret::command())
        .subcommand(verify::command());
    let matches = match app.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    forbid_core_dumps();
    match matches.subcommand() {
        Some(("serve", flags)) => serve(flags),
        Some(("check", flags)) => check(flags),
        Some(("provision", flags)) => {
            provision::execute(flags, &layers(Scope::Postgres, flags)).print()
        }
        Some(("password", flags)) => {
            password::execute(flags, &layers(Scope::Postgres, flags)).print()
        }
        Some(("ca", flags)) => ca::execute(&layers(Scope::Agent, flags)).print(),
        Some(("dev", flags)) => dev(flags),
        Some(("secret", flags)) => secret::execute(flags).print(),
        Some(("verify", flags)) => verify::execute(flags, &layers(Scope::Criteria, flags)).print(),
        _ => ExitCode::from(EX_USAGE),
    }
}

fn settings(name: &'static str, about: &'static str) -> Command {
    with_flags(Command::new(name).about(about), Scope::Serve)
}

fn layers(scope: Scope, flags: &ArgMatches) -> Layers {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    Layers::gather(scope, flags, |name| std::env::var_os(name), names)
}

fn serve(flags: &ArgMatches) -> ExitCode {
    let config = match Config::from_layers(&layers(Scope::Serve, flags)) {
        Ok(config) => config,
        Err(errors) => return usage(&errors),
    };
    let log = engine::telemetry::log::init(config.process.log_format, config.process.log.clone());
    let reload = || Config::from_layers(&layers(Scope::Serve, flags));
    let code = match sidecar::run(config, reload) {
        Ok(Outcome::Drained) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Interrupted(signal)) => {
            tracing::warn!(signal, "stopped at once");
            ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)))
        }
        Err(error) => {
            tracing::error!(%error, "the sidecar stopped");
            ExitCode::from(start_error_code(&error))
        }
    };
    drop(log);
    code
}

fn dev_command() -> Command {
    Command::new("dev")
        .about("A whole cluster on this machine, without TDX: Postgres, guest agent, sidecars")
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .num_args(1..)
                .last(true)
                .value_parser(clap::value_parser!(OsString))
                .help("Live as long as this command, which gets PGHOST, PGPASSWORD and all else in its environment; without one, until Ctrl-C"),
        )
}

/// A whole cluster on this machine, where this program was built with that.
#[cfg(feature = "mock")]
fn dev(flags: &ArgMatches) -> ExitCode {
    let command = flags.get_many::<OsString>("command");
    let command: Vec<_> = command.into_iter().flatten().cloned().collect();
    let log = engine::telemetry::log::init(
        engine::config::log_format::LogFormat::Text,
        engine::telemetry::log::quiet(),
    );
    let ended = engine::cli::dev::run(&command, say);
    drop(log);
    ExitCode::from(ended.unwrap_or_else(|error| {
        complain(&format!("error: {error}"));
        error.exit_code()
    }))
}

#[cfg(not(feature = "mock"))]
fn dev(_: &ArgMatches) -> ExitCode {
    complain(
        "error: this program has no TDX of its own to develop with: \
         cargo run -p engine --features mock --bin teesql-sidecar -- dev",
    );
    ExitCode::from(EX_USAGE)
}

fn check(flags: &ArgMatches) -> ExitCode {
    let layers = layers(Scope::Serve, flags);
    say(&layers.describe());
    let config = match Config::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return usage(&errors),
    };
    if let IdentitySource::Files { cert, key } = &config.identity
        && let Err(error) = Identity::from_files(cert, key)
    {
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

/// The command's output. Whoever reads it may have read enough, as `grep -q` does.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[expect(clippy::print_stderr, reason = "before there is a log")]
fn complain(text: &str) {
    eprintln!("{text}");
}
