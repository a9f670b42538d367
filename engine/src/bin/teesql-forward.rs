//! The client's side: any driver, any language, to a server that proved itself.

use std::process::ExitCode;

use engine::answer::EX_USAGE;
use engine::forward::command;

fn main() -> ExitCode {
    let flags = match command::command().try_get_matches() {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    command::execute(&flags, |name| std::env::var_os(name), names)
}
