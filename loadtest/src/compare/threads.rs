//! Workload on threads of its own, on one core and with_background_load other threads.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::{Error, Result, io_context};

/// Does `work` with_background_load as many threads as the other arms' load has: virtual cores may
/// share a real one, and then each is slower while the other is busy.
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
    Error::Server("a thread panicked".to_owned())
}

/// On a thread of its own that may use this core only.
pub(super) fn on_core<T: Send>(core: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failed = |error: nix::Error| io_context("cannot use the proxies' core")(error.into());
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
