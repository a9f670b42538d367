//! Messages from other threads to a shard.
//!
//! The bell is one end of a socket pair that the shard reads like any other
//! socket, so that both drivers wait for it and monoio's own cross-thread
//! wake-ups, with a locked queue looked at on every turn of the loop, stay
//! out of the build. Nobody rings while the bell is still ringing.

use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;

/// The sending end: cheap to clone, never blocks.
pub(crate) struct Sender<T> {
    queue: mpsc::Sender<T>,
    bell: Arc<WakeSocket>,
}

/// The shard's end.
pub(crate) struct Mailbox<T> {
    queue: mpsc::Receiver<T>,
    ringing: Arc<WakeSocket>,
    listener: StdUnixStream,
}

struct WakeSocket {
    rung: AtomicBool,
    socket: StdUnixStream,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            bell: Arc::clone(&self.bell),
        }
    }
}

/// A mailbox and its first sender.
///
/// # Errors
/// No descriptors are left.
pub(crate) fn mailbox<T>() -> io::Result<(Sender<T>, Mailbox<T>)> {
    let (queue, receiver) = mpsc::channel();
    let (socket, listener) = StdUnixStream::pair()?;
    socket.set_nonblocking(true)?;
    let bell = Arc::new(WakeSocket {
        rung: AtomicBool::new(false),
        socket,
    });
    Ok((
        Sender {
            queue,
            bell: Arc::clone(&bell),
        },
        Mailbox {
            queue: receiver,
            ringing: bell,
            listener,
        },
    ))
}

impl<T> Sender<T> {
    /// Puts a message into the box; lost when the shard is gone.
    pub(crate) fn send(&self, message: T) {
        if self.queue.send(message).is_ok() && !self.bell.rung.swap(true, Ordering::AcqRel) {
            // A full socket cannot happen with one byte in it at most.
            let _ = (&self.bell.socket).write(&[1]);
        }
    }
}

impl<T> Mailbox<T> {
    /// Hands each message to `take`, in order, until `take` says stop.
    ///
    /// # Errors
    /// The bell broke, which leaves the shard deaf.
    pub(crate) async fn deliver(self, mut take: impl FnMut(T) -> bool) -> io::Result<()> {
        self.listener.set_nonblocking(monoio::utils::is_legacy())?;
        let mut bell = UnixStream::from_std(self.listener)?;
        let mut byte = vec![0_u8; 8];
        loop {
            let (read, back) = bell.read(byte).await;
            byte = back;
            if read? == 0 {
                return Ok(());
            }
            // Cleared before the queue is emptied: a message that comes after
            // the last look rings again.
            self.ringing.rung.store(false, Ordering::Release);
            while let Ok(message) = self.queue.try_recv() {
                if !take(message) {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    #[test]
    fn messages_from_other_threads_arrive_all_and_in_order() {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let (sender, mailbox) = mailbox().unwrap();
            let other = std::thread::spawn(move || {
                for number in 0..10_000 {
                    sender.send(number);
                    if number % 1000 == 0 {
                        // Lets the shard fall asleep in between.
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
            });
            let mut seen = Vec::new();
            let delivery = mailbox.deliver(|number: i32| {
                seen.push(number);
                number < 9_999
            });
            match block_on(driver, delivery) {
                Ok(end) => end.unwrap(),
                Err(error) => {
                    println!("skipped {driver}: {error}");
                    other.join().unwrap();
                    continue;
                }
            }
            other.join().unwrap();
            assert!(seen.iter().copied().eq(0..10_000));
        }
    }
}
