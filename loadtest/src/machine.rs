//! Description of the machine, and how busy it is.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

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
