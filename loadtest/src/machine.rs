//! Description of the machine, and how busy it is.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::process_usage::{self, Pid};

/// The machine and its state at the start of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model name of the processor.
    pub cpu: String,
    /// Number of usable cores.
    pub cores: usize,
    /// Memory in GB.
    pub memory_gb: f64,
    /// Version of the Linux kernel.
    pub kernel: String,
    /// TCP congestion control algorithm.
    pub congestion: String,
    /// CPU share of other processes just before the first measurement, 0 to 1.
    pub busy_before: f64,
    /// Date (UTC), as year-month-day.
    pub day: String,
}

impl Machine {
    /// Describes the current machine.
    #[must_use]
    pub fn current(cores: usize, unix_now: u64, busy_before: f64) -> Self {
        let cpu = read_field("/proc/cpuinfo", "model name");
        let memory = read_field("/proc/meminfo", "MemTotal");
        let kilobytes = memory
            .split(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok());
        Self {
            cpu,
            cores,
            memory_gb: (kilobytes.unwrap_or(0.0) / 1e6).round(),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            congestion: read_line("/proc/sys/net/ipv4/tcp_congestion_control"),
            busy_before,
            day: civil_date(unix_now),
        }
    }
}

fn read_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// The value after `name` and a colon in the first line that starts with `name`.
fn read_field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    let value = found.and_then(|rest| rest.split_once(':'));
    value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

/// Converts a UNIX time to a date, with the algorithm `civil_from_days`: days are counted from
/// March of year 0, within eras of 400 years.
fn civil_date(unix: u64) -> String {
    let days = unix / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // 0 is March.
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// CPU ticks of the whole machine since boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTicks {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl CpuTicks {
    /// Reads the counters from `/proc/stat`.
    #[must_use]
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let fields: Vec<u64> = line
            .split_ascii_whitespace()
            .skip(1)
            .flat_map(str::parse)
            .collect();
        Self {
            // user, nice, system, idle, iowait, irq, softirq, steal. [proc(5)]
            all: fields.iter().take(8).sum(),
            idle: fields.iter().skip(3).take(2).sum(),
            stolen: fields.get(7).copied().unwrap_or(0),
        }
    }

    /// CPU share that the hypervisor gave to other guests (steal) since `before`, 0 to 1.
    #[must_use]
    pub fn stolen_since(self, before: Self) -> f64 {
        self.share_since(before, |ticks| ticks.stolen)
    }

    /// CPU share that was not idle since `before`, 0 to 1.
    #[must_use]
    pub fn busy_since(self, before: Self) -> f64 {
        1.0 - self.share_since(before, |ticks| ticks.idle)
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks of some minutes")]
    fn share_since(self, before: Self, of: impl Fn(&Self) -> u64) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        of(&self).saturating_sub(of(&before)) as f64 / all as f64
    }
}

/// Process ID of `kthreadd`, the parent of all kernel threads.
const KTHREADD: &str = "2";
/// Kernel threads that also work for the programs that are measured: network, deferred work, memory reclamation of RCU.
const WORK_FOR_PROGRAMS: [&str; 3] = ["ksoftirqd/", "kworker/", "rcu_"];
/// Share of one core from which on a kernel thread is reported.
const MIN_KERNEL_SHARE: f64 = 0.005;

/// CPU time of the kernel threads that work for themselves, such as `kdamond`. They run for many
/// milliseconds at a time, and no program is served on their core meanwhile.
pub struct KernelThreads {
    read_at: Instant,
    used: BTreeMap<(Pid, String), Duration>,
}

impl KernelThreads {
    /// Reads the CPU times from `/proc`. Threads that cannot be read are left out.
    #[must_use]
    pub fn now() -> Self {
        let mut used = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if let Some(name) = kernel_thread(&stat)
                && let Ok(cpu) = process_usage::cpu_of(pid)
            {
                used.insert((pid, name.to_owned()), cpu);
            }
        }
        Self {
            read_at: Instant::now(),
            used,
        }
    }

    /// The threads that used a notable share of a core since `before`, with that share, 0 to 1. The largest
    /// comes first.
    #[must_use]
    pub fn busy_since(&self, before: &Self) -> Vec<(String, f64)> {
        let seconds = (self.read_at - before.read_at).as_secs_f64().max(1e-9);
        let share = |(thread, cpu): (&(Pid, String), &Duration)| {
            let old = before.used.get(thread).copied().unwrap_or_default();
            (
                thread.1.clone(),
                cpu.saturating_sub(old).as_secs_f64() / seconds,
            )
        };
        let shares = self.used.iter().map(share);
        let mut busy: Vec<_> = shares
            .filter(|(_, share)| *share >= MIN_KERNEL_SHARE)
            .collect();
        busy.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        busy
    }
}

/// The name of a kernel thread that works for itself, from its `/proc/<pid>/stat`: the ID, the name in parentheses, the state,
/// the ID of the parent. [proc_pid_stat(5)]
fn kernel_thread(stat: &str) -> Option<&str> {
    let (start, rest) = stat.rsplit_once(") ")?;
    let (_, name) = start.split_once(" (")?;
    let for_programs = WORK_FOR_PROGRAMS
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let parent = rest.split(' ').nth(1)?;
    (parent == KTHREADD && !for_programs).then_some(name)
}

/// Raises the descriptor limit of this process, which child processes inherit, as far as the system
/// allows. Returns the new limit.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 0;
    };
    // Raising the hard limit needs a capability (CAP_SYS_RESOURCE).
    for wanted in [65_536.max(hard), hard] {
        if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
            return wanted;
        }
    }
    soft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn civil_dates_match_the_calendar() {
        assert_eq!(civil_date(0), "1970-01-01");
        assert_eq!(civil_date(951_782_400), "2000-02-29");
        assert_eq!(civil_date(1_795_132_800), "2026-11-20");
        assert_eq!(civil_date(1_798_675_199), "2026-12-30");
    }

    #[test]
    fn the_current_machine_is_described() {
        let machine = Machine::current(2, 0, 0.0);
        assert!(
            !machine.kernel.is_empty() && machine.memory_gb > 0.0,
            "{machine:?}"
        );
        let before = CpuTicks::now();
        assert!(before.all > 0);
        let now = CpuTicks::now();
        assert!((0.0..=1.0).contains(&now.stolen_since(before)));
        assert!((0.0..=1.0).contains(&now.busy_since(before)));
    }

    #[test]
    fn kernel_threads_that_work_for_themselves_are_found() {
        let stat = |name: &str, parent: u32| format!("77 ({name}) S {parent} 0 0 0 -1 2129984 0");
        assert_eq!(kernel_thread(&stat("kdamond.0", 2)), Some("kdamond.0"));
        assert_eq!(kernel_thread(&stat("a) name (", 2)), Some("a) name ("));
        assert_eq!(kernel_thread(&stat("postgres", 1)), None);
        assert_eq!(kernel_thread(&stat("ksoftirqd/1", 2)), None);
        assert_eq!(kernel_thread(&stat("kworker/1:2-events", 2)), None);
        assert_eq!(kernel_thread(""), None);
    }

    #[test]
    fn kernel_threads_are_reported_by_their_share_of_a_core() {
        let read_at = Instant::now();
        let threads = |seconds: u64, millis: &[(&str, u64)]| KernelThreads {
            read_at: read_at + Duration::from_secs(seconds),
            used: (1..)
                .zip(millis)
                .map(|(pid, (name, millis))| {
                    ((pid, (*name).to_owned()), Duration::from_millis(*millis))
                })
                .collect(),
        };
        let before = threads(0, &[("kcompactd0", 100), ("kswapd0", 5)]);
        let now = threads(
            10,
            &[("kcompactd0", 149), ("kswapd0", 105), ("kdamond.0", 900)],
        );
        let busy = [("kdamond.0".to_owned(), 0.09), ("kswapd0".to_owned(), 0.01)];
        assert_eq!(now.busy_since(&before), busy);
        let read = KernelThreads::now();
        assert_eq!(read.busy_since(&read), []);
    }

    #[test]
    fn cpu_shares_are_computed_from_tick_differences() {
        let before = CpuTicks {
            all: 1_000,
            idle: 500,
            stolen: 10,
        };
        let now = CpuTicks {
            all: 1_200,
            idle: 650,
            stolen: 12,
        };
        assert!((now.busy_since(before) - 0.25).abs() < 1e-9);
        assert!((now.stolen_since(before) - 0.01).abs() < 1e-9);
    }
}
