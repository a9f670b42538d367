//! The forwarder: gives drivers without attestation a local connection to an attested server.

use std::process::ExitCode;

use engine::cli::forward;
use engine::cli::hardening::protect_process;
use engine::cli::output::EX_USAGE;
use engine::config::Scope;

fn main() -> ExitCode {
    match forward::command().try_get_matches() {
        Ok(flags) => {
            let forwards = flags.subcommand().is_none();
            protect_process(forwards.then_some(Scope::Forward));
            forward::execute(&flags)
        }
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 })
        }
    }
}
