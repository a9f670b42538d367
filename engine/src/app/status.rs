//! What the status page shows: the present metrics as tables and sentences, and samples of the last ten minutes in a ring buffer.
//!
//! Everything is read from the text of `/metrics`. So the page shows nothing that is not there, the shards do no work for it, and
//! this module needs no second list of the counters.

mod exposition;
mod histogram;
mod history;
mod tables;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use admin::status::{Fact, Lifetime, Status};
use humantime::format_rfc3339_seconds;

use crate::tasks::coalesced_sleep::sleep;
use crate::telemetry::metrics::Metrics;
use exposition::Exposition;
use history::{History, SAMPLE_INTERVAL};

/// As in docs/grafana/alerts.yaml: if less time is left, renewal has failed for a long time.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(3600);
const COLLATERAL_WARNING: Duration = Duration::from_secs(3 * 86_400);

/// The samples of a process.
pub(crate) struct StatusHistory {
    program: &'static str,
    history: Mutex<History>,
}

impl StatusHistory {
    pub(crate) fn new(program: &'static str) -> Arc<Self> {
        Arc::new(Self {
            program,
            history: Mutex::default(),
        })
    }

    /// Takes a sample every [`SAMPLE_INTERVAL`]. Never returns.
    pub(crate) async fn sample(self: Arc<Self>, metrics: Arc<Metrics>) {
        loop {
            {
                let text = metrics.sample();
                let sample = Exposition::parse(&text);
                self.history().record(&sample, Instant::now());
            }
            sleep(SAMPLE_INTERVAL).await;
        }
    }

    /// What the page shows. `metrics` is the text of `/metrics`.
    pub(crate) fn status(&self, metrics: &str) -> Status {
        let now = Exposition::parse(metrics);
        let time = SystemTime::now();
        let (charts, refusals) = {
            let history = self.history();
            (history.charts(), history.refusals(&now, Instant::now()))
        };
        Status {
            program: self.program.to_owned(),
            made_at: format_rfc3339_seconds(time).to_string(),
            build: build(&now),
            uptime: uptime(&now, time),
            warnings: tables::warnings(&now),
            lifetimes: lifetimes(&now),
            charts,
            tables: tables::tables(&now),
            refusals,
        }
    }

    /// Ignores poisoning: after a panic at most one sample is missing.
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The label of an info gauge that is 1.
fn info(now: &Exposition<'_>, name: &str, label: &str) -> Option<String> {
    let mut series = now.family(name);
    let current = series.find(|series| series.value == 1.0)?;
    current.label(label).map(str::to_owned)
}

fn build(now: &Exposition<'_>) -> Vec<Fact> {
    let memory = now.value("process_resident_memory_bytes");
    let memory = memory.map(|bytes| format!("{:.1} MB", bytes / 1e6));
    let facts = [
        ("Version", info(now, "teesql_build_info", "version")),
        ("I/O driver", info(now, "teesql_driver_info", "driver")),
        ("Resident memory", memory),
    ];
    let known = facts.into_iter();
    known
        .filter_map(|(name, value)| {
            Some(Fact {
                name,
                value: value?,
            })
        })
        .collect()
}

fn uptime(now: &Exposition<'_>, time: SystemTime) -> Option<Duration> {
    let started = now.value("process_start_time_seconds")?;
    let started = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(started).ok()?)?;
    time.duration_since(started).ok()
}

fn lifetimes(now: &Exposition<'_>) -> Vec<Lifetime> {
    let lifetime = |name, series, warn_below: Duration| {
        let seconds = now.value(series)?;
        Some(Lifetime {
            name,
            seconds: Some(seconds).filter(|seconds| !seconds.is_nan()),
            warn_below: warn_below.as_secs_f64(),
        })
    };
    let all = [
        lifetime(
            "Own certificate",
            "teesql_certificate_expires_in_seconds",
            CERTIFICATE_WARNING,
        ),
        lifetime(
            "Collateral that expires first",
            "teesql_collateral_expires_in_seconds",
            COLLATERAL_WARNING,
        ),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::shard_metrics::register_all;

    #[test]
    fn the_page_of_a_new_process_has_no_refusal() {
        let metrics = Metrics::new().unwrap();
        register_all(&metrics, 2);
        metrics
            .gauge("teesql_certificate_expires_in_seconds", &[])
            .set(90.0);
        metrics
            .gauge("teesql_collateral_expires_in_seconds", &[])
            .set(f64::NAN);
        let history = StatusHistory::new("teesql-sidecar");
        let text = metrics.render();
        history
            .history()
            .record(&Exposition::parse(&text), Instant::now());
        let status = history.status(&text);
        assert_eq!(status.program, "teesql-sidecar");
        assert_eq!(status.refusals, []);
        assert_eq!(status.warnings, Vec::<String>::new());
        let left: Vec<_> = status.lifetimes.iter().map(|one| one.seconds).collect();
        assert_eq!(left, [Some(90.0), None]);
        assert!(status.build.iter().any(|fact| fact.name == "Version"));
        assert!(status.uptime.is_some());
    }
}
