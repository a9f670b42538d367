//! Which kernel interface moves the bytes: io_uring, or epoll where a kernel
//! or a container's seccomp profile does not allow it.
//!
//! monoio's own `FusionDriver` falls back without a word; here the choice is
//! made once, before the shards start, and logged.

use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Submission queue entries of a shard's ring.
const RING_ENTRIES: u32 = 1024;

/// The `driver` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// io_uring where it works, else epoll.
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

/// The driver in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Completion I/O.
    IoUring,
    /// Readiness I/O.
    Epoll,
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
        })
    }
}

impl std::str::FromStr for Choice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Choice::Auto),
            "io_uring" => Ok(Choice::IoUring),
            "epoll" => Ok(Choice::Epoll),
            _ => Err("expected auto, io_uring or epoll"),
        }
    }
}

/// Settles the choice by making a ring, and says why where it fails.
///
/// # Errors
/// io_uring was asked for and the kernel refuses it.
pub fn choose(choice: Choice) -> io::Result<(Driver, Option<io::Error>)> {
    match choice {
        Choice::Epoll => Ok((Driver::Epoll, None)),
        Choice::IoUring => ring().build().map(|_| (Driver::IoUring, None)),
        Choice::Auto => Ok(match ring().build() {
            Ok(_) => (Driver::IoUring, None),
            Err(error) => (Driver::Epoll, Some(error)),
        }),
    }
}

fn ring() -> RuntimeBuilder<TimeDriver<IoUringDriver>> {
    let mut flags = io_uring::IoUring::builder();
    let mode = std::env::var("RINGMODE").unwrap_or_default();
    if mode.contains('c') {
        flags.setup_coop_taskrun();
    }
    if mode.contains('s') {
        flags.setup_single_issuer();
    }
    if mode.contains('d') {
        flags.setup_defer_taskrun();
    }
    RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .uring_builder(flags)
        .enable_timer()
}

/// Runs `main` to its end on a new runtime of this thread.
///
/// # Errors
/// The runtime cannot be made.
pub(crate) fn block_on<F: Future>(driver: Driver, main: F) -> io::Result<F::Output> {
    match driver {
        Driver::IoUring => Ok(ring().build()?.block_on(main)),
        Driver::Epoll => Ok(RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()?
            .block_on(main)),
    }
}
