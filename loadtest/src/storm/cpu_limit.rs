//! A limit on the CPU of another process: a cgroup with a bandwidth limit (CFS quota), of version 1 or 2.
//!
//! It stands for a slower machine. It is not the same: a process without quota stops until the period ends, while on
//! a slow machine it runs slowly. The period is therefore short.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result, io_context};
use crate::process_usage::Pid;

/// Length of a period, in µs. The kernel hands out the quota in slices of 5 ms to each core.
const PERIOD: u32 = 10_000;
/// The smallest quota that the kernel accepts, in µs. [kernel, scheduler/sched-bwc.rst]
const MIN_QUOTA: u32 = 1_000;
/// Where the controller `cpu` of version 1 is mounted, and where version 2 is.
const V1: &str = "/sys/fs/cgroup/cpu";
const V2: &str = "/sys/fs/cgroup";

/// A cgroup. Dropping it removes it, which fails while it has a process.
pub struct CpuLimit {
    folder: PathBuf,
}

/// How often the limit stopped its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which the process ran.
    pub periods: u64,
    /// Those in which it was stopped.
    pub throttled: u64,
    /// How long it was stopped, added up over the cores.
    pub time: Duration,
}

impl CpuLimit {
    /// Creates a cgroup with `share` (0 to 1) of the time of `cores` cores.
    ///
    /// # Errors
    /// This process may not create one, or the kernel has no limit on CPU bandwidth.
    pub fn new(share: f64, cores: usize) -> Result<Self> {
        let quota = quota(share, cores);
        let name = format!("teesql-loadtest-{}", std::process::id());
        let v1 = Path::new(V1);
        let (folder, settings) = match v1.join("cpu.cfs_quota_us").exists() {
            true => (
                v1.join(name),
                vec![
                    ("cpu.cfs_period_us", PERIOD.to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ],
            ),
            false => {
                // Otherwise the new group has no controller.
                let _ = fs::write(format!("{V2}/cgroup.subtree_control"), "+cpu");
                let folder = Path::new(V2).join(name);
                (folder, vec![("cpu.max", format!("{quota} {PERIOD}"))])
            }
        };
        let context = || {
            io_context(format!(
                "--cpu-share needs a cgroup with a CPU limit, which cannot be created: {}",
                folder.display()
            ))
        };
        fs::create_dir(&folder).map_err(context())?;
        let limit = Self {
            folder: folder.clone(),
        };
        for (name, value) in settings {
            fs::write(folder.join(name), value).map_err(context())?;
        }
        Ok(limit)
    }

    /// Whether this process may create such a limit.
    #[must_use]
    pub fn is_available() -> bool {
        Self::new(1.0, 1).is_ok()
    }

    /// Limits the process with all of its threads.
    ///
    /// # Errors
    /// There is no such process.
    pub fn add(&self, pid: Pid) -> Result<()> {
        let path = self.folder.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(io_context(path.display().to_string()))
    }

    /// How often the limit stopped the process so far.
    ///
    /// # Errors
    /// The kernel does not say it.
    pub fn throttling(&self) -> Result<Throttling> {
        let path = self.folder.join("cpu.stat");
        let text = fs::read_to_string(&path).map_err(io_context(path.display().to_string()))?;
        throttling(&text).ok_or_else(|| Error::Peer(format!("{}: {text}", path.display())))
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "some thousand µs for each core"
)]
fn quota(share: f64, cores: usize) -> u32 {
    let quota = share * cores as f64 * f64::from(PERIOD);
    (quota.round() as u32).max(MIN_QUOTA)
}

fn throttling(text: &str) -> Option<Throttling> {
    let number = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.parse::<u64>().ok()
    };
    let time = match number("throttled_time") {
        Some(nanos) => Duration::from_nanos(nanos),
        None => Duration::from_micros(number("throttled_usec")?),
    };
    Some(Throttling {
        periods: number("nr_periods")?,
        throttled: number("nr_throttled")?,
        time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_share_of_all_cores() {
        assert_eq!(quota(0.5, 2), PERIOD);
        assert_eq!(quota(0.25, 2), PERIOD / 2);
        assert_eq!(quota(0.001, 1), MIN_QUOTA);
    }

    #[test]
    fn both_versions_say_how_often_they_stopped_a_process() {
        let seen = Throttling {
            periods: 7,
            throttled: 3,
            time: Duration::from_millis(5),
        };
        let v1 = "nr_periods 7\nnr_throttled 3\nthrottled_time 5000000\nnr_bursts 0\n";
        let v2 = "usage_usec 12\nnr_periods 7\nnr_throttled 3\nthrottled_usec 5000\nburst_usec 0\n";
        assert_eq!([throttling(v1), throttling(v2)], [Some(seen); 2]);
        assert_eq!(throttling("usage_usec 12\n"), None);
    }
}
