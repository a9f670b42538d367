//! A process of a member that is started again whenever it ends, as a service manager does.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The pause before the next start.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Starts the process, and again whenever it ends, until the task is aborted. Its output is appended to `log`.
pub(super) fn keep_running(
    log: PathBuf,
    command: impl Fn() -> Command + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
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
                let _ = child.wait().await;
            }
            sleep(RESTART_PAUSE).await;
        }
    })
}
