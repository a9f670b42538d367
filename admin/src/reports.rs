//! Makes reports as the [`QuoteLimiter`] decides, and gives each report to every request that waits
//! for it (single flight).
//!
//! A flight is one call of [`Source::attestation`]. It runs on its own task, so that a client that
//! disconnects never cancels it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::nonce::Nonce;
use crate::quote_limiter::{Decision, QuoteLimiter};
use crate::settings::Settings;
use crate::source::Source;
use crate::stats::Stats;

/// Maximum number of requests that wait for one report: half of the connections, so that a guest
/// agent that hangs does not use up those of `/health`.
fn max_waiters(settings: &Settings) -> usize {
    settings.max_connections / 2
}

/// The result of a request for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The report, as JSON.
    Report(Bytes),
    /// The source returned an error, with this reason.
    Unavailable(String),
    /// The source did not finish within the timeout.
    TimedOut,
    /// The source panicked, or the server is stopping.
    Internal,
    /// Rate-limited: retry after this time.
    RetryAfter(Duration),
}

type Flight = watch::Receiver<Option<Outcome>>;

struct Shared {
    limiter: QuoteLimiter,
    /// The last flight that was started.
    flight: Option<Flight>,
}

/// Makes all reports, and shares and limits them.
pub(crate) struct Reports {
    source: Arc<dyn Source>,
    stats: Arc<Stats>,
    shared: Mutex<Shared>,
    interval: Duration,
    timeout: Duration,
    waiter_permits: Semaphore,
}

enum Pending {
    /// Decided without a flight: a cached report, or a rejection.
    Done(Outcome),
    /// Waits for a flight that another request started.
    Joined(Flight),
    /// Started a flight.
    Started(Flight),
}

impl Reports {
    pub(crate) fn new(source: Arc<dyn Source>, stats: Arc<Stats>, settings: &Settings) -> Self {
        Self {
            source,
            stats,
            shared: Mutex::new(Shared {
                limiter: QuoteLimiter::new(settings.attestation_interval),
                flight: None,
            }),
            interval: settings.attestation_interval,
            timeout: settings.attestation_timeout,
            waiter_permits: Semaphore::new(max_waiters(settings)),
        }
    }

    /// Returns a report for `nonce`, or why none can be made. Dropping this future does not cancel
    /// the flight.
    pub(crate) async fn report(self: &Arc<Self>, nonce: Option<Nonce>) -> Outcome {
        let (outcome, shared) = match self.begin(nonce) {
            Pending::Done(outcome) => (outcome, true),
            Pending::Joined(flight) => (self.wait(flight).await, true),
            Pending::Started(flight) => (self.wait(flight).await, false),
        };
        match &outcome {
            Outcome::Report(_) if shared => self.stats.reports_shared.increment(),
            Outcome::RetryAfter(_) => self.stats.reports_limited.increment(),
            _ => {}
        }
        outcome
    }

    fn begin(self: &Arc<Self>, nonce: Option<Nonce>) -> Pending {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match (
            shared.limiter.request(nonce.as_ref(), Instant::now()),
            &shared.flight,
        ) {
            (Decision::Cached(report), _) => Pending::Done(Outcome::Report(report)),
            (Decision::RetryAfter(wait), _) => Pending::Done(Outcome::RetryAfter(wait)),
            (Decision::Join, Some(flight)) => Pending::Joined(flight.clone()),
            // Unreachable: a flight is stored before the limiter returns Join.
            (Decision::Join, None) => Pending::Done(Outcome::Internal),
            (Decision::Start, _) => {
                let (sender, flight) = watch::channel(None);
                shared.flight = Some(flight.clone());
                tokio::spawn(Arc::clone(self).run_flight(nonce, sender));
                Pending::Started(flight)
            }
        }
    }

    async fn wait(&self, mut flight: Flight) -> Outcome {
        let Ok(_permit) = self.waiter_permits.try_acquire() else {
            return Outcome::RetryAfter(self.interval);
        };
        // The sender is dropped without a value only when the runtime stops.
        match flight.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::Internal),
            Err(_) => Outcome::Internal,
        }
    }

    /// Makes one report, records its end and wakes the requests that wait for it.
    async fn run_flight(
        self: Arc<Self>,
        nonce: Option<Nonce>,
        sender: watch::Sender<Option<Outcome>>,
    ) {
        let outcome = self.make_report(nonce).await;
        let report = match &outcome {
            Outcome::Report(report) => Some(report.clone()),
            _ => None,
        };
        match report {
            Some(_) => self.stats.reports_made.increment(),
            None => self.stats.reports_failed.increment(),
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.limiter.finish(report, Instant::now());
        drop(shared);
        sender.send_replace(Some(outcome));
    }

    /// Calls the source on a separate task, which contains its panics.
    async fn make_report(&self, nonce: Option<Nonce>) -> Outcome {
        let source = Arc::clone(&self.source);
        let mut task = tokio::spawn(async move { source.attestation(nonce).await });
        match timeout(self.timeout, &mut task).await {
            Ok(Ok(Ok(report))) => Outcome::Report(report.into()),
            Ok(Ok(Err(unavailable))) => Outcome::Unavailable(unavailable.reason),
            Ok(Err(_)) => {
                tracing::error!("panic while making the report for /attestation");
                Outcome::Internal
            }
            Err(_) => {
                task.abort();
                Outcome::TimedOut
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::source::{ReportFuture, Unavailable};

    /// The outcome of every quote. Each takes 40 ms of virtual time, except those that hang.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum SourceBehavior {
        Good,
        Failing,
        Hanging,
        Panicking,
    }

    struct TestSource {
        behavior: SourceBehavior,
        started: AtomicU64,
    }

    impl Source for TestSource {
        fn mode(&self) -> &'static str {
            "test"
        }

        fn metrics(&self, _: &Stats) -> String {
            String::new()
        }

        fn attestation(self: Arc<Self>, _: Option<Nonce>) -> ReportFuture {
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                sleep(Duration::from_millis(40)).await;
                match self.behavior {
                    SourceBehavior::Good => Ok(number.to_string()),
                    SourceBehavior::Failing => Err(Unavailable::new("no agent")),
                    SourceBehavior::Hanging => std::future::pending().await,
                    SourceBehavior::Panicking => panic!("on purpose"),
                }
            })
        }
    }

    fn reports(behavior: SourceBehavior) -> (Arc<TestSource>, Arc<Reports>) {
        let source = Arc::new(TestSource {
            behavior,
            started: AtomicU64::new(0),
        });
        let dyn_source: Arc<dyn Source> = Arc::clone(&source) as _;
        let reports = Reports::new(dyn_source, Arc::default(), &Settings::default());
        (source, Arc::new(reports))
    }

    fn report(text: &'static str) -> Outcome {
        Outcome::Report(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_a_flight_and_later_ones_its_report() {
        let (source, reports) = reports(SourceBehavior::Good);
        let (first, second) = tokio::join!(reports.report(None), reports.report(None));
        assert_eq!((first, second), (report("0"), report("0")));
        sleep(Duration::from_millis(990)).await;
        assert_eq!(reports.report(None).await, report("0"));
        sleep(Duration::from_millis(20)).await;
        assert_eq!(reports.report(None).await, report("1"));
        assert_eq!(source.started.load(Ordering::Relaxed), 2);
        let stats = &reports.stats;
        assert_eq!((stats.reports_made(), stats.reports_shared()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_does_not_cancel_the_flight() {
        let (source, reports) = reports(SourceBehavior::Good);
        let abandoned = timeout(Duration::from_millis(5), reports.report(None)).await;
        assert!(abandoned.is_err());
        assert_eq!(reports.report(None).await, report("0"));
        assert_eq!(source.started.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_quote_times_out_and_starts_the_interval() {
        let (source, reports) = reports(SourceBehavior::Hanging);
        let start = Instant::now();
        let (one, two) = tokio::join!(reports.report(None), reports.report(None));
        assert_eq!((one, two), (Outcome::TimedOut, Outcome::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 15);
        assert!(matches!(reports.report(None).await, Outcome::RetryAfter(_)));
        // The hanging future has been dropped: only this test and `reports` hold the source.
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&source), 2);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(reports.report(None).await, Outcome::TimedOut);
        assert_eq!(source.started.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_start_the_interval() {
        for (behavior, outcome) in [
            (
                SourceBehavior::Failing,
                Outcome::Unavailable("no agent".into()),
            ),
            (SourceBehavior::Panicking, Outcome::Internal),
        ] {
            let (source, reports) = reports(behavior);
            assert_eq!(reports.report(None).await, outcome);
            assert!(matches!(reports.report(None).await, Outcome::RetryAfter(_)));
            sleep(Duration::from_secs(1)).await;
            assert_eq!(reports.report(None).await, outcome);
            assert_eq!(source.started.load(Ordering::Relaxed), 2);
            assert_eq!(reports.stats.reports_failed(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_are_capped_at_half_the_connections() {
        let (_, reports) = reports(SourceBehavior::Good);
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let reports = Arc::clone(&reports);
            requests.spawn(async move { reports.report(None).await });
        }
        let outcomes = requests.join_all().await;
        let made = outcomes.iter().filter(|got| **got == report("0"));
        assert_eq!(made.count(), 32);
        let later = Outcome::RetryAfter(Duration::from_secs(1));
        assert_eq!(outcomes.iter().filter(|got| **got == later).count(), 18);
    }
}
