//! A command that runs in our stead: what `dev` and `teesql-forward` pass on to it,
//! and what they say of its end.

use std::io::{self, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

/// As a shell says it: its exit code, or 128 and the number of the signal that ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|number| 128 + number);
    let code = status.code().or_else(signal);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Passes a signal of ours on. At a terminal it has had Ctrl-C and Ctrl-\ itself, being
/// in the same process group; a second one would cut its tidying up short.
pub(crate) fn pass_on(signal: Signal, child: &Child) {
    let of_the_terminal = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
    if !(of_the_terminal && io::stdin().is_terminal()) {
        send(signal, child);
    }
}

/// Nothing, where it has ended.
pub(crate) fn send(signal: Signal, child: &Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(id) = id {
        let _ = kill(Pid::from_raw(id), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
