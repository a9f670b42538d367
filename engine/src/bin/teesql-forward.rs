//! The forwarder: gives drivers without attestation a local connection to an attested server.

use std::process::ExitCode;

use engine::cli::forward;
use engine::cli::output::EX_USAGE;

fn main() -> ExitCode {
    match forward::command().try_get_matches() {
        Ok(flags) => forward::execute(&flags),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 })
        }
    }
}
