//! The tokio runtime of threads that may wait for the network: the control thread, and the
//! one-shot commands. Shards have a monoio runtime instead.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// Builds a runtime with timers and I/O that runs its tasks on the calling thread.
///
/// # Errors
/// The process has no file descriptors left.
pub(crate) fn new_current_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
