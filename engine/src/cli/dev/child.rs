//! A command that `dev` runs beside the cluster, and lives as long as.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::signal::unix::SignalKind;
use tokio::time::timeout;

use super::sidecars::Sidecars;
use super::{DevError, system};
use crate::app::signals::ProcessSignals;
use crate::cli::output::EX_OSERR;
use crate::cli::subprocess;

/// For its end where there is no cluster any more; then it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs it to its end, passing signals on.
///
/// # Errors
/// It cannot be run, or a sidecar ended first.
pub(super) async fn run(
    mut command: Command,
    sidecars: &mut Sidecars,
    signals: &mut ProcessSignals,
) -> Result<u8, DevError> {
    let mut running = command.spawn().map_err(|source| DevError::Command {
        program: command.as_std().get_program().to_owned(),
        source,
    })?;
    loop {
        tokio::select! {
            status = running.wait() => {
                return status.map(subprocess::exit_code).map_err(system("cannot wait for the command"));
            }
            ended = sidecars.next_end() => {
                end(&mut running).await;
                return ended.map(|_| EX_OSERR);
            }
            order = signals.next() => pass_on(order, &running),
        }
    }
}

fn pass_on(order: SignalKind, running: &Child) {
    if let Ok(signal) = Signal::try_from(order.as_raw_value()) {
        subprocess::pass_on(signal, running);
    }
}

async fn end(running: &mut Child) {
    subprocess::send(Signal::SIGTERM, running);
    if timeout(PATIENCE, running.wait()).await.is_err() {
        let _ = running.kill().await;
    }
}
