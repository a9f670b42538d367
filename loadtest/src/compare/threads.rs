//! Helpers to run work on a pinned thread and alongside background load.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::{Error, Result, io_context};

/// Runs `work` while as many threads as the other arms' load has run `load`. Virtual cores may
/// share a physical one, and then each is slower while the other one is busy.
pub(super) fn with_background_load<T: Send>(
    threads: usize,
    load: impl Fn() -> Result<T> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..threads).map(|_| scope.spawn(&load)).collect();
        let done = work();
        for load in loads {
            load.join().unwrap_or_else(|_| Err(panicked()))?;
        }
        done
    })
}

fn panicked() -> Error {
    Error::Server("a worker thread panicked".to_owned())
}

/// Runs `work` on a new thread that is pinned to `core`.
pub(super) fn on_core<T: Send>(core: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failed = |error: nix::Error| io_context("cannot set CPU affinity")(error.into());
    let mut set = CpuSet::new();
    set.set(core.parse().unwrap_or(0)).map_err(failed)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sched_setaffinity(Pid::from_raw(0), &set).map_err(failed)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}
