//! Protection of this process' memory from other processes of the same user and from core files.

use std::io::Write as _;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

use crate::config::{Scope, take_secrets};

/// Removes the secrets of `scope` from the environment block, forbids core files, and makes the process not dumpable:
/// no debugger of the same user can attach to it, and `/proc/PID/mem` and `/proc/PID/environ` belong to root. Call it
/// first, before there are threads.
///
/// A platform may not allow one of these steps. The others are taken nevertheless.
pub fn protect_process(scope: Option<Scope>) {
    if let Some(scope) = scope
        && let Err(error) = take_secrets(scope)
    {
        let _ = writeln!(
            std::io::stderr(),
            "warning: secrets stay in the environment of this process, use their …_FILE variables instead: {error}"
        );
    }
    // A core file would contain secrets. The limit does not hold for a core that is piped to a program; not being
    // dumpable does.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = prctl::set_dumpable(false);
}
