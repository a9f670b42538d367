//! The sidecar: TLS, client attestation and login in front of a PostgreSQL in a confidential VM.

use std::process::ExitCode;

use engine::cli::hardening::protect_process;
use engine::cli::output::EX_USAGE;
use engine::cli::{
    audit, ca, check, cluster, dev, manifest_address, password, program, provision, secret, serve,
    sessions, verify,
};
use engine::config::Scope;

fn main() -> ExitCode {
    let matches = match program::sidecar().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    let is_serve = matches.subcommand_name() == Some("serve");
    protect_process(is_serve.then_some(Scope::Serve));
    match matches.subcommand() {
        Some(("serve", flags)) => serve::execute(flags),
        Some(("check", flags)) => check::execute(flags).print(),
        Some(("sessions", flags)) => sessions::list(flags).print(),
        Some(("kill", flags)) => sessions::kill(flags).print(),
        Some(("provision", flags)) => provision::execute(flags).print(),
        Some(("password", flags)) => password::execute(flags).print(),
        Some(("ca", flags)) => ca::execute(flags).print(),
        Some(("cluster", flags)) => cluster::execute(flags).print(),
        Some(("manifest-address", flags)) => manifest_address::execute(flags).print(),
        Some(("dev", flags)) => dev::execute(flags),
        Some(("secret", flags)) => secret::execute(flags).print(),
        Some(("verify", flags)) => verify::execute(flags).print(),
        Some(("audit", flags)) => audit::execute(flags).print(),
        _ => ExitCode::from(EX_USAGE),
    }
}
