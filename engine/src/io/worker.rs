//! A thread that is joined with a deadline.
//!
//! A library must leave no thread behind when it is stopped, and must not hang in its caller because one of its threads
//! does.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long [`Worker::join`] waits. A thread ends within milliseconds, unless foreign code blocks it.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A thread and the knowledge when it ends.
pub(crate) struct Worker {
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system cannot create another thread.
    pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (alive, ended) = channel::<()>();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _alive = alive;
                run();
            })?;
        Ok(Self {
            thread: Some(thread),
            ended,
        })
    }

    /// Waits until the thread has ended, for at most [`JOIN_TIMEOUT`]. Returns whether it has.
    pub(crate) fn join(&mut self) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        // Foreign code on the thread may drop what owns it.
        if thread.thread().id() == std::thread::current().id() {
            return false;
        }
        // Nothing is ever sent: the sender is dropped at the end, or by a panic.
        match self.ended.recv_timeout(JOIN_TIMEOUT) {
            Err(RecvTimeoutError::Timeout) => {
                let name = thread.thread().name().unwrap_or_default().to_owned();
                tracing::warn!(name, "a thread does not end, and is left behind");
                false
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = thread.join();
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_waits_for_the_end_of_the_thread() {
        let (sender, receiver) = channel();
        let mut worker = Worker::spawn("test", move || {
            std::thread::sleep(Duration::from_millis(20));
            sender.send(()).unwrap();
        })
        .unwrap();
        assert!(worker.join());
        assert_eq!(receiver.try_recv(), Ok(()));
        assert!(worker.join(), "again");
    }

    #[test]
    fn a_panic_is_an_end() {
        let mut worker = Worker::spawn("test", || panic!("a bug")).unwrap();
        assert!(worker.join());
    }
}
