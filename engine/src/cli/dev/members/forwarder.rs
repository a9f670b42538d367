//! The forwarder of `dev --members`, with all members as its targets.

use tokio::process::Command;
use tokio::task::JoinHandle;

use super::process::keep_running;
use super::world::{World, forwarder_program};

/// Runs it until the task is aborted.
pub(super) fn start(world: &World, this: &std::path::Path) -> JoinHandle<()> {
    let program = forwarder_program(this);
    let settings = world.forwarder();
    let socket = world.folder.forwarder();
    keep_running(world.file("forwarder.log"), move || {
        // A forwarder that was killed leaves its socket behind.
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(&program);
        command.process_group(0).stdin(std::process::Stdio::null());
        command.envs(&settings);
        command
    })
}
