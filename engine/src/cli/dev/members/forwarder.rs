//! The forwarders of `dev --members`: one with all members as its targets, and with `--dns` one that follows the leader.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::task::JoinHandle;

use super::process::keep_running;
use super::world::{World, forwarder_program};

/// Starts them. Each runs until its task is aborted.
pub(super) fn start(world: &World, this: &Path) -> Vec<JoinHandle<()>> {
    let folder = &world.folder;
    let mut tasks = vec![run(
        this,
        world.forwarder(),
        folder.forwarder(),
        world.file("forwarder.log"),
    )];
    tasks.extend(
        world
            .following_forwarder()
            .map(|settings| run(this, settings, folder.following(), folder.following_log())),
    );
    tasks
}

/// `socket` is the one of the settings.
fn run(
    this: &Path,
    settings: BTreeMap<&'static str, OsString>,
    socket: PathBuf,
    log: PathBuf,
) -> JoinHandle<()> {
    let program = forwarder_program(this);
    keep_running(log, move || {
        // A forwarder that was killed leaves its socket behind.
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(&program);
        command.process_group(0).stdin(std::process::Stdio::null());
        command.envs(&settings);
        command
    })
}
