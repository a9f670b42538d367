//! Child processes of `dev` and `teesql-forward`: forwarding of signals, exit codes, and orphans.

use std::io::{self, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::process::Child;

/// The exit code as a shell reports it: that of the child, or 128 plus the number of the signal that
/// ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|number| 128 + number);
    let code = status.code().or_else(signal);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Forwards a signal that this process received. A terminal sends Ctrl-C and Ctrl-\ to the whole
/// process group, so the child has those already; a second one would interrupt its clean-up.
pub(crate) fn forward_signal(signal: Signal, child: &Child) {
    let from_terminal = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
    if !(from_terminal && io::stdin().is_terminal()) {
        send_signal(signal, child);
    }
}

/// Sends a signal, unless the child has exited.
pub(crate) fn send_signal(signal: Signal, child: &Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(id) = id {
        let _ = kill(Pid::from_raw(id), signal);
    }
}

/// The process id of init, which in a container is the first program.
const INIT: u32 = 1;

/// Waits for the exited children that this process did not start: as init of a container it is the parent of every
/// orphan, which stays a zombie otherwise. The status of `own` is left to its owner. Never blocks.
pub(crate) fn reap_orphans(own: Option<u32>) {
    if std::process::id() != INIT {
        return;
    }
    let own = own.and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = waitid(Id::All, peek)
        && Some(pid) != own
    {
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_of_a_signal_is_128_plus_its_number() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
