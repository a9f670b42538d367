//! Runs the command that `dev` starts the cluster for.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::signal::unix::SignalKind;
use tokio::time::timeout;

use super::error::{DevError, system};
use super::sidecars::Sidecars;
use crate::app::signals::ProcessSignals;
use crate::cli::output::EX_OSERR;
use crate::cli::subprocess;

/// How long the command may take to exit after SIGTERM, once the cluster has failed. It is then killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the command until it exits, and forwards signals to it.
///
/// # Errors
/// The command cannot be run, or a sidecar ended first.
pub(super) async fn run(
    mut command: Command,
    sidecars: &mut Sidecars,
    signals: &mut ProcessSignals,
) -> Result<u8, DevError> {
    let mut child = command.spawn().map_err(|source| DevError::Command {
        program: command.as_std().get_program().to_owned(),
        source,
    })?;
    loop {
        tokio::select! {
            status = child.wait() => {
                return status.map(subprocess::exit_code).map_err(system("cannot wait for the command"));
            }
            outcome = sidecars.next_outcome() => {
                stop(&mut child).await;
                return outcome.map(|_| EX_OSERR);
            }
            signal = signals.next() => forward_signal(signal, &child),
        }
    }
}

fn forward_signal(signal: SignalKind, child: &Child) {
    if let Ok(signal) = Signal::try_from(signal.as_raw_value()) {
        subprocess::forward_signal(signal, child);
    }
}

async fn stop(child: &mut Child) {
    subprocess::send_signal(Signal::SIGTERM, child);
    if timeout(EXIT_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
