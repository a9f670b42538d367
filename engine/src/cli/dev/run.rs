//! Starts the cluster of `dev`, prints instructions or runs the command, and stops the cluster.

use std::ffi::OsString;
use std::io::Write as _;

use tokio::signal::unix::SignalKind;

use super::child;
use super::cluster::Cluster;
use super::error::{DevError, system};
use super::instructions::Instructions;
use super::postgres::Postgres;
use super::sidecars::Sidecars;
use crate::app::runtime;
use crate::app::signals::ProcessSignals;

/// Runs the cluster until a signal arrives, and prints how to use it; or runs `command`, until it
/// exits. Returns the exit code: that of the command, or 128 plus the number of the signal that ended
/// it.
///
/// # Errors
/// [`DevError`]. The cluster and its files have been removed.
pub(super) fn run(command: &[OsString]) -> Result<u8, DevError> {
    let runtime = runtime::new_current_thread().map_err(system("cannot start a thread"))?;
    // Install the handlers first. Without them a signal would end the process without clean-up.
    let mut signals = {
        let _entered = runtime.enter();
        ProcessSignals::new().map_err(system("cannot install signal handlers"))?
    };
    let folder = tempfile::Builder::new().prefix("teesql-dev-").tempdir();
    let folder = folder.map_err(system("cannot create a temporary directory"))?;
    let cluster = Cluster::create(folder.path(), command.is_empty())?;
    let postgres = Postgres::start(folder.path(), &cluster.superuser_password)?;
    runtime.block_on(run_sidecars(&cluster, &postgres, &mut signals, command))
}

async fn run_sidecars(
    cluster: &Cluster,
    postgres: &Postgres,
    signals: &mut ProcessSignals,
    command: &[OsString],
) -> Result<u8, DevError> {
    let mut sidecars = Sidecars::default();
    let production = sidecars.start(cluster.production(postgres))?;
    let simulator = sidecars.start(cluster.simulator(postgres))?;
    let result = tokio::select! {
        started = async { (production.await.ok(), simulator.await.ok()) } => match started {
            (Some(production), Some(simulator)) => {
                let instructions = Instructions::new(cluster, postgres, &production, &simulator);
                instructions.write()?;
                match command {
                    [] => {
                        // A closed standard output does not stop the cluster.
                        let _ = std::io::stdout().write_all(instructions.text().as_bytes());
                        wait_for_end(&mut sidecars, signals).await
                    }
                    [program, arguments @ ..] => {
                        let command = instructions.command(program, arguments);
                        child::run(command, &mut sidecars, signals).await
                    }
                }
            }
            // A sidecar failed to start; `stop` returns its error.
            _ => Ok(0),
        },
        signal = signals.next() => Ok(if command.is_empty() { 0 } else { exit_code(signal) }),
    };
    sidecars.stop(signals).await.and(result)
}

/// Waits for a signal, which is success, or for a sidecar to end.
async fn wait_for_end(
    sidecars: &mut Sidecars,
    signals: &mut ProcessSignals,
) -> Result<u8, DevError> {
    tokio::select! {
        outcome = sidecars.next_outcome() => outcome.map(|_| 0),
        _ = signals.next() => Ok(0),
    }
}

/// The exit code that a shell reports for a process that this signal ended.
fn exit_code(signal: SignalKind) -> u8 {
    let number = u8::try_from(signal.as_raw_value()).unwrap_or(0);
    128_u8.saturating_add(number)
}
