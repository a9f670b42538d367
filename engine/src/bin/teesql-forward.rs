//! The client's side: any driver, any language, to a server that proved itself.

use std::process::ExitCode;

use engine::cli::forward;
use engine::cli::output::EX_USAGE;

fn main() -> ExitCode {
    let flags = match forward::command().try_get_matches() {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    forward::execute(&flags, |name| std::env::var_os(name), names)
}
