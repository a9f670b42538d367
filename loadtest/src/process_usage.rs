//! CPU time and memory of a process, as the operating system reports them.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};

use crate::error::{Result, io_context};

/// Process ID of the measured process.
pub type Pid = u32;

/// User and system CPU time of all threads of a process. The same as in `/proc/<pid>/stat`, but in
/// ns instead of steps of 10 ms. [clock_getcpuclockid(3)]
///
/// # Errors
/// The process does not exist.
pub fn cpu_of(pid: Pid) -> Result<Duration> {
    let gone = |error: nix::Error| io_context(format!("process {pid}"))(error.into());
    let id = i32::try_from(pid).map_err(|_| gone(nix::Error::ESRCH))?;
    let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(id)).map_err(gone)?;
    clock_gettime(clock).map(Duration::from).map_err(gone)
}

/// User and system CPU time of this process, i.e. the cost of the load.
///
/// # Errors
/// Never, on Linux.
pub fn own_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let usage = usage.map_err(|error| io_context("getrusage")(error.into()))?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

fn duration(time: TimeVal) -> Duration {
    let micros = time
        .tv_sec()
        .saturating_mul(1_000_000)
        .saturating_add(time.tv_usec());
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// CPU time of this thread, with a resolution of ns.
#[must_use]
pub fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident set size: shared pages count in full.
    pub rss: u64,
    /// Proportional set size: shared pages count in proportion.
    pub pss: u64,
}

/// Reads the memory of a process.
///
/// # Errors
/// The process does not exist or belongs to another user.
pub fn memory(pid: Pid) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(io_context(path))?;
    Ok(Memory {
        rss: kilobytes(&text, "Rss:"),
        pss: kilobytes(&text, "Pss:"),
    })
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_of_this_process_are_read() {
        let before = thread_cpu();
        let mut sum = 0_u64;
        while thread_cpu() - before < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own_cpu().unwrap() >= Duration::from_millis(40));
        let ticks = fs::read_to_string("/proc/self/stat").unwrap();
        let fields = ticks.split_ascii_whitespace().skip(13).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
        let clock = cpu_of(std::process::id()).unwrap();
        assert!(clock >= Duration::from_millis(ticks * 10), "{clock:?}");
        assert!(clock >= Duration::from_millis(40));
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss > 100_000);
    }

    #[test]
    fn cpu_time_of_a_missing_process_is_an_error() {
        assert!(cpu_of(u32::MAX).is_err());
    }
}
