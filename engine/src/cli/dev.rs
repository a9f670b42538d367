//! `teesql-sidecar dev`: all of a cluster on one machine, without TDX and
//! without dstack. A throw-away Postgres, a guest agent and a PCCS of the
//! project's own under a root of their own, and two sidecars before it: one in
//! production mode under that root, and one in simulator mode.
//!
//! Nothing in it is a shortcut through the product: the sidecars are the ones
//! that `serve` runs, configured as an operator would. It lives until a signal
//! comes, or as long as a command that it is given; nothing is left behind.

use std::ffi::OsString;
use std::io;

use attest::mock::MockError;
use tokio::signal::unix::SignalKind;

use crate::app::error::StartError;
use crate::app::runtime;
use crate::app::signals::ProcessSignals;
use crate::cli::output::{EX_OSERR, EX_USAGE};
use crate::config::Errors;

mod child;
mod cluster;
mod instructions;
mod postgres;
mod sidecars;

use cluster::Cluster;
use instructions::Guide;
use postgres::Postgres;
use sidecars::Sidecars;

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file, a process or a socket.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// The command that was to be run.
    #[error("{}: {source}", program.display())]
    Command {
        /// Its name.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// Postgres does not start; its own words.
    #[error("Postgres: {0}")]
    Postgres(String),
    /// The mock TDX cannot be made.
    #[error(transparent)]
    Mock(#[from] MockError),
    /// The guest agent of our own does not answer as it should.
    #[error(transparent)]
    Agent(#[from] attest::agent::AgentError),
    /// The environment has a setting that does not go with this.
    #[error(transparent)]
    Settings(#[from] Errors),
    /// A sidecar does not run.
    #[error(transparent)]
    Serve(#[from] StartError),
    /// The system has no randomness.
    #[error("no randomness")]
    Random,
}

impl DevError {
    /// For the shell; of a command that cannot be run, as env(1) has it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
            Self::Settings(_) => EX_USAGE,
            _ => EX_OSERR,
        }
    }
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DevError {
    let doing = doing.into();
    move |source| DevError::System { doing, source }
}

/// Runs it until a signal comes, and tells `said` how to use it; or, with a
/// `command`, until that ends. Returns the exit code: the command's own, and
/// 128 and the signal's number where a signal ended it.
///
/// # Errors
/// [`DevError`]; nothing is left behind then either.
pub fn run(command: &[OsString], said: impl Fn(&str)) -> Result<u8, DevError> {
    let runtime = runtime::of_this_thread().map_err(system("cannot start a thread"))?;
    // Before anything is there that a signal would leave behind.
    let mut signals = {
        let _entered = runtime.enter();
        ProcessSignals::new().map_err(system("cannot listen for signals"))?
    };
    let folder = tempfile::Builder::new().prefix("teesql-dev-").tempdir();
    let folder = folder.map_err(system("cannot make a folder"))?;
    let cluster = Cluster::make(folder.path(), command.is_empty())?;
    let postgres = Postgres::start(folder.path(), &cluster.superuser_password)?;
    runtime.block_on(live(&cluster, &postgres, &mut signals, command, said))
}

async fn live(
    cluster: &Cluster,
    postgres: &Postgres,
    signals: &mut ProcessSignals,
    command: &[OsString],
    said: impl Fn(&str),
) -> Result<u8, DevError> {
    let mut sidecars = Sidecars::default();
    let production = sidecars.start(cluster.production(postgres))?;
    let simulator = sidecars.start(cluster.simulator(postgres))?;
    let lived = tokio::select! {
        // Where one of them has ended already, it says why below.
        started = async { (production.await.ok(), simulator.await.ok()) } => match started {
            (Some(production), Some(simulator)) => {
                let guide = Guide::new(cluster, postgres, &production, &simulator);
                guide.write()?;
                match command {
                    [] => {
                        said(&guide.text());
                        until_told(&mut sidecars, signals).await
                    }
                    [program, arguments @ ..] => {
                        let command = guide.command(program, arguments);
                        child::run(command, &mut sidecars, signals).await
                    }
                }
            }
            _ => Ok(0),
        },
        signal = signals.next() => Ok(if command.is_empty() { 0 } else { code(signal) }),
    };
    sidecars.end(signals).await.and(lived)
}

/// Stopped as it was asked to: that is success.
async fn until_told(sidecars: &mut Sidecars, signals: &mut ProcessSignals) -> Result<u8, DevError> {
    tokio::select! {
        ended = sidecars.next_end() => ended.map(|_| 0),
        _ = signals.next() => Ok(0),
    }
}

/// What a shell says of a program that this signal ended.
fn code(signal: SignalKind) -> u8 {
    let number = u8::try_from(signal.as_raw_value()).unwrap_or(0);
    128_u8.saturating_add(number)
}
