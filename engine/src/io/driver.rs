//! Which kernel interface moves the bytes: io_uring, or epoll where a kernel
//! or a container's seccomp profile does not allow it.
//!
//! monoio's own `FusionDriver` falls back without a word; here the choice is
//! made once, before the shards start, and logged.

use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

/// Submission queue entries of a shard's ring.
const RING_ENTRIES: u32 = 1024;

/// The `driver` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring where it works, else epoll.
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

/// The driver in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDriver {
    /// Completion I/O.
    IoUring,
    /// Readiness I/O.
    Epoll,
}

impl std::fmt::Display for IoDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IoDriver::IoUring => "io_uring",
            IoDriver::Epoll => "epoll",
        })
    }
}

impl std::str::FromStr for DriverChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(DriverChoice::Auto),
            "io_uring" => Ok(DriverChoice::IoUring),
            "epoll" => Ok(DriverChoice::Epoll),
            _ => Err("expected auto, io_uring or epoll"),
        }
    }
}

/// Settles the choice by making a ring, and says why where it fails.
///
/// # Errors
/// io_uring was asked for and the kernel refuses it.
pub fn choose(choice: DriverChoice) -> io::Result<(IoDriver, Option<io::Error>)> {
    match choice {
        DriverChoice::Epoll => Ok((IoDriver::Epoll, None)),
        DriverChoice::IoUring => ring().map(|_| (IoDriver::IoUring, None)),
        DriverChoice::Auto => Ok(match ring() {
            Ok(_) => (IoDriver::IoUring, None),
            Err(error) => (IoDriver::Epoll, Some(error)),
        }),
    }
}

/// Makes a runtime with the cheapest ring that this kernel has.
///
/// COOP_TASKRUN (Linux 5.19) lets completions wait for the shard's next system
/// call instead of interrupting it, SINGLE_ISSUER (6.0) tells the kernel that
/// only this thread submits: together 10 % of a small query's CPU. What must
/// not be set is DEFER_TASKRUN: completions would then wait until the shard
/// sleeps, and monoio's loop does not while it has work
/// (docs/adr/0005-io-uring-ring-flags.md).
fn ring() -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_coop_taskrun().setup_single_issuer();
    build(flags).or_else(|error| match error.kind() {
        // An older kernel does not know them.
        io::ErrorKind::InvalidInput => build(io_uring::IoUring::builder()),
        _ => Err(error),
    })
}

fn build(flags: io_uring::Builder) -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .uring_builder(flags)
        .enable_timer()
        .build()
}

/// Runs `main` to its end on a new runtime of this thread.
///
/// # Errors
/// The runtime cannot be made.
pub(crate) fn block_on<F: Future>(driver: IoDriver, main: F) -> io::Result<F::Output> {
    match driver {
        IoDriver::IoUring => Ok(ring()?.block_on(main)),
        IoDriver::Epoll => Ok(RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()?
            .block_on(main)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use monoio::io::AsyncReadRent;
    use monoio::net::UnixStream;

    use super::*;

    /// Reads a byte in a task that never lets the shard sleep. (A second, busy
    /// task would not do: monoio 0.2.4 puts a task that wakes itself in front
    /// of all others.)
    async fn read_without_sleep() -> bool {
        let (mut far, near) = StdUnixStream::pair().unwrap();
        near.set_nonblocking(monoio::utils::is_legacy()).unwrap();
        let mut near = UnixStream::from_std(near).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            far.write_all(b"x").unwrap();
            far
        });
        let task = monoio::spawn(async move {
            let mut read = std::pin::pin!(near.read(vec![0; 1]));
            let give_up = Instant::now() + Duration::from_secs(10);
            std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
                Poll::Ready((result, _)) => Poll::Ready(result.unwrap() == 1),
                Poll::Pending if Instant::now() > give_up => Poll::Ready(false),
                Poll::Pending => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            })
            .await
        });
        let read = task.await;
        drop(writer.join());
        read
    }

    #[test]
    fn completions_arrive_although_the_shard_never_sleeps() {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            match block_on(driver, read_without_sleep()) {
                Ok(read) => assert!(read, "{driver}"),
                Err(error) => println!("skipped {driver}: {error}"),
            }
        }
    }

    #[test]
    fn a_setting_is_one_of_three_words() {
        assert_eq!("io_uring".parse(), Ok(DriverChoice::IoUring));
        assert!("iouring".parse::<DriverChoice>().is_err());
    }
}
