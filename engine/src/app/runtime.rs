//! The runtime of threads that may wait: the control thread, and commands that ask
//! somebody something.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// One that runs on the thread which calls it, with timers and I/O.
///
/// # Errors
/// No descriptors are left.
pub(crate) fn of_this_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
