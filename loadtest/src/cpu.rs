//! What the operating system says a process used.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

use crate::error::{Result, doing};

/// Ticks a second in `/proc/<pid>/stat`: USER_HZ, which is 100 on every platform
/// that there is a TDX guest for. [proc(5)]
const TICKS: u32 = 100;

/// Whose CPU and memory is asked for.
pub type Pid = u32;

/// User and system time of a process so far, all threads: 10 ms steps.
///
/// # Errors
/// It is gone.
pub fn of(pid: Pid) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(doing(path.as_str()))?;
    parse_stat(&text).ok_or_else(|| doing(path)(std::io::ErrorKind::InvalidData.into()))
}

/// The name in parentheses may have spaces and parentheses; fields 14 and 15
/// count from 1.
fn parse_stat(text: &str) -> Option<Duration> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs(1) * user.checked_add(system)? / TICKS)
}

/// User and system time of this process so far: what the load costs.
///
/// # Errors
/// Never, on Linux.
pub fn own() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let usage = usage.map_err(|error| doing("getrusage")(error.into()))?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

fn duration(time: TimeVal) -> Duration {
    let micros = time
        .tv_sec()
        .saturating_mul(1_000_000)
        .saturating_add(time.tv_usec());
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// CPU time of this thread so far, in ns steps.
#[must_use]
pub fn thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident pages, shared ones in full.
    pub rss: u64,
    /// Resident pages, shared ones in part.
    pub pss: u64,
}

/// What a process holds now.
///
/// # Errors
/// It is gone, or another user's.
pub fn memory(pid: Pid) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(doing(path))?;
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
    fn a_name_with_spaces_and_parentheses_is_no_trouble() {
        let stat = "42 (a ) b (c) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0 9";
        assert_eq!(parse_stat(stat), Some(Duration::from_millis(1750)));
        assert_eq!(parse_stat("42 (x) S 1"), None);
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let before = thread();
        let mut sum = 0_u64;
        while thread() - before < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own().unwrap() >= Duration::from_millis(40));
        assert!(of(std::process::id()).unwrap() >= Duration::from_millis(10));
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss > 100_000);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(of(u32::MAX).is_err());
    }
}
