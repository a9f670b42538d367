//! A process of a member that is started again whenever it ends, as a service manager does.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::namespace::child_of;

/// The pause before the next start.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// A program that is kept running.
pub(super) struct Program {
    task: JoinHandle<()>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The id of the nsenter whose child the program is; 0 if none runs.
    id: AtomicU32,
    /// It is not started again.
    stopping: AtomicBool,
}

impl Program {
    /// Stops the program with SIGTERM, as a service manager does, and waits for its end for so long.
    pub(super) async fn stop(&mut self, limit: Duration) {
        self.state.stopping.store(true, Ordering::Relaxed);
        let id = self.state.id.load(Ordering::Relaxed);
        let program = (id != 0).then(|| child_of(id)).flatten();
        if let Some(Ok(program)) = program.map(i32::try_from) {
            let _ = kill(Pid::from_raw(program), Signal::SIGTERM);
        }
        let _ = timeout(limit, &mut self.task).await;
    }

    /// Gives the program up: it is not started again.
    pub(super) fn abort(&self) {
        self.task.abort();
    }
}

/// Starts the process, and again whenever it ends, until the task is aborted. Its output is appended to `log`.
pub(super) fn keep_running(
    log: PathBuf,
    command: impl Fn() -> Command + Send + 'static,
) -> JoinHandle<()> {
    supervise(log, command).task
}

/// The same for a program that nsenter starts, which can be stopped.
pub(super) fn supervise(log: PathBuf, command: impl Fn() -> Command + Send + 'static) -> Program {
    let state = Arc::new(State::default());
    let shared = Arc::clone(&state);
    let task = tokio::spawn(async move {
        while !shared.stopping.load(Ordering::Relaxed) {
            let mut command = command();
            if let Ok(file) = OpenOptions::new().append(true).create(true).open(&log) {
                if let Ok(same) = file.try_clone() {
                    command.stderr(same);
                }
                command.stdout(file);
            } else {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
            if let Ok(mut child) = command.kill_on_drop(true).spawn() {
                shared.id.store(child.id().unwrap_or(0), Ordering::Relaxed);
                let _ = child.wait().await;
                shared.id.store(0, Ordering::Relaxed);
            }
            if !shared.stopping.load(Ordering::Relaxed) {
                sleep(RESTART_PAUSE).await;
            }
        }
    });
    Program { task, state }
}
