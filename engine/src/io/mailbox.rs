//! A multi-producer, single-consumer channel from other threads to a shard, which is woken through a
//! socket pair (the self-pipe trick).
//!
//! The shard reads its end of the pair like any other socket, so that both I/O drivers wait for it.
//! monoio's own cross-thread wake-ups would lock a queue on every iteration of its loop
//! (docs/adr/0002-socket-pair-mailbox.md). At most one wake-up byte is pending at a time. Sending must
//! never block.

use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;

/// The sending end. It is cheap to clone.
pub(crate) struct Sender<T> {
    queue: mpsc::Sender<T>,
    waker: Arc<WakeSocket>,
}

/// The receiving end, which belongs to the shard.
pub(crate) struct Mailbox<T> {
    queue: mpsc::Receiver<T>,
    waker: Arc<WakeSocket>,
    wake_receiver: StdUnixStream,
}

/// The sending end of the socket pair.
struct WakeSocket {
    /// Whether a wake-up byte is pending.
    pending: AtomicBool,
    socket: StdUnixStream,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            waker: Arc::clone(&self.waker),
        }
    }
}

/// Creates a mailbox and its first sender.
///
/// # Errors
/// The process has no file descriptors left.
pub(crate) fn mailbox<T>() -> io::Result<(Sender<T>, Mailbox<T>)> {
    let (queue, receiver) = mpsc::channel();
    let (socket, wake_receiver) = StdUnixStream::pair()?;
    socket.set_nonblocking(true)?;
    let waker = Arc::new(WakeSocket {
        pending: AtomicBool::new(false),
        socket,
    });
    Ok((
        Sender {
            queue,
            waker: Arc::clone(&waker),
        },
        Mailbox {
            queue: receiver,
            waker,
            wake_receiver,
        },
    ))
}

impl<T> Sender<T> {
    /// Queues a message and wakes the shard. The message is lost if the shard has ended.
    pub(crate) fn send(&self, message: T) {
        if self.queue.send(message).is_ok() && !self.waker.pending.swap(true, Ordering::AcqRel) {
            // It cannot fail with EAGAIN, since at most one byte is pending.
            let _ = (&self.waker.socket).write(&[1]);
        }
    }
}

impl<T> Mailbox<T> {
    /// Calls `handle` with each message, in order, until it returns `false`.
    ///
    /// # Errors
    /// The socket pair failed, so that the shard would get no further messages.
    pub(crate) async fn deliver(self, mut handle: impl FnMut(T) -> bool) -> io::Result<()> {
        self.wake_receiver
            .set_nonblocking(monoio::utils::is_legacy())?;
        let mut wake_receiver = UnixStream::from_std(self.wake_receiver)?;
        let mut buffer = vec![0_u8; 8];
        loop {
            let (read, filled) = wake_receiver.read(buffer).await;
            buffer = filled;
            if read? == 0 {
                return Ok(());
            }
            // Clear the flag before emptying the queue, so that a message which arrives after the
            // last `try_recv` wakes the shard again. A read-modify-write, because a plain store may be
            // visible only after the queue was found empty.
            self.waker.pending.swap(false, Ordering::AcqRel);
            while let Ok(message) = self.queue.try_recv() {
                if !handle(message) {
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
    fn all_messages_from_another_thread_arrive_in_order() {
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
