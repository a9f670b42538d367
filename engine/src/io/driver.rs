//! The I/O driver of the shards: io_uring, or epoll if the kernel or a seccomp profile of the
//! container does not allow io_uring.
//!
//! monoio's `FusionDriver` falls back silently. Here the choice is made once, before the shards
//! start, so that it can be logged.

use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

/// Submission queue entries of a shard's ring.
const RING_ENTRIES: u32 = 1024;

/// The `driver` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring if the kernel allows it, otherwise epoll.
    Auto,
    /// io_uring. The process does not start without it.
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

/// Chooses the driver by creating a ring. With [`DriverChoice::Auto`], a fallback to epoll is returned
/// with the error that caused it.
///
/// # Errors
/// [`DriverChoice::IoUring`] is set and the kernel refuses io_uring.
pub fn choose(choice: DriverChoice) -> io::Result<(IoDriver, Option<io::Error>)> {
    match choice {
        DriverChoice::Epoll => Ok((IoDriver::Epoll, None)),
        DriverChoice::IoUring => io_uring_runtime().map(|_| (IoDriver::IoUring, None)),
        DriverChoice::Auto => Ok(match io_uring_runtime() {
            Ok(_) => (IoDriver::IoUring, None),
            Err(error) => (IoDriver::Epoll, Some(error)),
        }),
    }
}

/// Builds a runtime with the most efficient ring flags that the kernel supports.
///
/// With COOP_TASKRUN (Linux 5.19), completions wait for the shard's next system call instead of
/// interrupting it. SINGLE_ISSUER (6.0) tells the kernel that only this thread submits. Together
/// they save 10 % of the CPU time of a small query. DEFER_TASKRUN must not be set: completions
/// would then wait until the shard sleeps, which monoio's loop does not do while it has work
/// (docs/adr/0005-io-uring-ring-flags.md).
fn io_uring_runtime() -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_coop_taskrun().setup_single_issuer();
    build(flags).or_else(|error| match error.kind() {
        // Older kernels do not support the flags.
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

/// Runs `main` on a new runtime of this thread until it has completed.
///
/// # Errors
/// The runtime cannot be created.
pub(crate) fn block_on<F: Future>(driver: IoDriver, main: F) -> io::Result<F::Output> {
    match driver {
        IoDriver::IoUring => Ok(io_uring_runtime()?.block_on(main)),
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

    /// Reads a byte in a task that wakes itself, so that the shard never sleeps. A separate busy task
    /// would prevent the read, because monoio 0.2.4 polls a task that wakes itself before all others.
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
            let deadline = Instant::now() + Duration::from_secs(10);
            std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
                Poll::Ready((result, _)) => Poll::Ready(result.unwrap() == 1),
                Poll::Pending if Instant::now() > deadline => Poll::Ready(false),
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
    fn parses_the_three_values_of_the_setting() {
        assert_eq!("io_uring".parse(), Ok(DriverChoice::IoUring));
        assert!("iouring".parse::<DriverChoice>().is_err());
    }
}
