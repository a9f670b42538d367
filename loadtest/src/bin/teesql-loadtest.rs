//! Load generator for PostgreSQL behind TLS, and the benchmark of the sidecar against other
//! proxies.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use loadtest::{Error, command};

/// Exit code for invalid flags. [sysexits.h]
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let matches = match command::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match command::execute(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(if matches!(error, Error::Usage(_)) {
                EX_USAGE
            } else {
                1
            })
        }
    }
}
