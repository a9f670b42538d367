//! A command that `dev` runs beside the cluster, and lives as long as.

use std::io::{self, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::SignalKind;
use tokio::time::timeout;

use super::sidecars::Sidecars;
use super::{DevError, system};
use crate::answer::EX_OSERR;
use crate::orders::Signals;

/// For its end where there is no cluster any more; then it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs it to its end, passing signals on.
///
/// # Errors
/// It cannot be run, or a sidecar ended first.
pub(super) async fn run(
    mut command: Command,
    sidecars: &mut Sidecars,
    signals: &mut Signals,
) -> Result<u8, DevError> {
    let mut child = command.spawn().map_err(|source| DevError::Command {
        program: command.as_std().get_program().to_owned(),
        source,
    })?;
    loop {
        tokio::select! {
            status = child.wait() => {
                return status.map(code).map_err(system("cannot wait for the command"));
            }
            ended = sidecars.next_end() => {
                end(&mut child).await;
                return ended.map(|_| EX_OSERR);
            }
            order = signals.next() => pass_on(order, &child),
        }
    }
}

/// As a shell says it.
fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|number| 128 + number);
    let code = status.code().or_else(signal);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// At a terminal it has had the Ctrl-C itself, being in the same process group.
fn pass_on(order: SignalKind, child: &Child) {
    if order == SignalKind::interrupt() && io::stdin().is_terminal() {
        return;
    }
    if let Ok(signal) = Signal::try_from(order.as_raw_value()) {
        send(signal, child);
    }
}

fn send(signal: Signal, child: &Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(id) = id {
        let _ = kill(Pid::from_raw(id), signal);
    }
}

async fn end(child: &mut Child) {
    send(Signal::SIGTERM, child);
    if timeout(PATIENCE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
