//! Makes reports as the [`ReportQueue`] decides, and gives each report to every request that it answers.
//!
//! A flight is one call of [`Source::attestation`]. It runs on its own task, so that a client that
//! disconnects never cancels it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::nonce::Nonce;
use crate::report_queue::{Decision, ReportQueue, source_of};
use crate::settings::Settings;
use crate::source::Source;
use crate::stats::Stats;

/// Maximum number of requests that wait for reports: half of the connections, so that a guest
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

type Waiter = oneshot::Sender<Outcome>;

/// Makes all reports, and shares and limits them.
pub(crate) struct Reports {
    source: Arc<dyn Source>,
    stats: Arc<Stats>,
    queue: Mutex<ReportQueue<Waiter>>,
    interval: Duration,
    timeout: Duration,
}

impl Reports {
    pub(crate) fn new(source: Arc<dyn Source>, stats: Arc<Stats>, settings: &Settings) -> Self {
        let interval = settings.attestation_interval;
        Self {
            source,
            stats,
            queue: Mutex::new(ReportQueue::new(interval, max_waiters(settings))),
            interval,
            timeout: settings.attestation_timeout,
        }
    }

    /// Returns a report that covers `nonce`, or why none can be made, to a client at `client`. Dropping this future
    /// does not cancel the flight.
    pub(crate) async fn report(self: &Arc<Self>, nonce: Option<Nonce>, client: IpAddr) -> Outcome {
        let outcome = match self.begin(nonce, client) {
            Ok(outcome) => outcome.await.unwrap_or(Outcome::Internal),
            Err(outcome) => outcome,
        };
        if matches!(outcome, Outcome::RetryAfter(_)) {
            self.stats.reports_limited.increment();
        }
        outcome
    }

    /// Puts a request into the queue, or decides it.
    fn begin(
        self: &Arc<Self>,
        nonce: Option<Nonce>,
        client: IpAddr,
    ) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        let (waiter, outcome) = oneshot::channel();
        let decision = self.queue().request(
            nonce,
            source_of(client),
            waiter,
            Instant::now(),
            oneshot::Sender::is_closed,
        );
        match decision {
            Decision::Cached(report) => {
                self.stats.reports_shared.increment();
                Err(Outcome::Report(report))
            }
            Decision::RetryAfter(wait) => Err(Outcome::RetryAfter(wait)),
            Decision::Queued { start, displaced } => {
                if let Some(displaced) = displaced {
                    // The client may have left.
                    let _ = displaced.send(Outcome::RetryAfter(self.interval));
                }
                if start {
                    tokio::spawn(Arc::clone(self).make_batches());
                }
                Ok(outcome)
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, ReportQueue<Waiter>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one report after another until no request waits.
    async fn make_batches(self: Arc<Self>) {
        loop {
            let cooldown = self.queue().cooldown(Instant::now());
            sleep(cooldown).await;
            let Some(batch) = self.queue().next_batch() else {
                return;
            };
            let outcome = self.make_report(batch.nonces).await;
            let report = match &outcome {
                Outcome::Report(report) => Some(report.clone()),
                _ => None,
            };
            match report {
                Some(_) => self.stats.reports_made.increment(),
                None => self.stats.reports_failed.increment(),
            }
            let made = report.is_some();
            let waiters = self.queue().finish(report, Instant::now());
            let mut answered = 0;
            for waiter in waiters {
                if waiter.send(outcome.clone()).is_ok() {
                    answered += 1;
                    if made && answered > 1 {
                        self.stats.reports_shared.increment();
                    }
                }
            }
        }
    }

    /// Calls the source on a separate task, which contains its panics.
    async fn make_report(&self, nonces: Vec<Nonce>) -> Outcome {
        let source = Arc::clone(&self.source);
        let mut task = tokio::spawn(async move { source.attestation(nonces).await });
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

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

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

        fn attestation(self: Arc<Self>, _: Vec<Nonce>) -> ReportFuture {
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
        let (first, second) =
            tokio::join!(reports.report(None, CLIENT), reports.report(None, CLIENT));
        assert_eq!((first, second), (report("0"), report("0")));
        sleep(Duration::from_millis(990)).await;
        assert_eq!(reports.report(None, CLIENT).await, report("0"));
        sleep(Duration::from_millis(20)).await;
        assert_eq!(reports.report(None, CLIENT).await, report("1"));
        assert_eq!(source.started.load(Ordering::Relaxed), 2);
        let stats = &reports.stats;
        assert_eq!((stats.reports_made(), stats.reports_shared()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_does_not_cancel_the_flight() {
        let (source, reports) = reports(SourceBehavior::Good);
        let abandoned = timeout(Duration::from_millis(5), reports.report(None, CLIENT)).await;
        assert!(abandoned.is_err());
        assert_eq!(reports.report(None, CLIENT).await, report("0"));
        assert_eq!(source.started.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_quote_times_out_and_starts_the_interval() {
        let (source, reports) = reports(SourceBehavior::Hanging);
        let start = Instant::now();
        let (one, two) = tokio::join!(reports.report(None, CLIENT), reports.report(None, CLIENT));
        assert_eq!((one, two), (Outcome::TimedOut, Outcome::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 15);
        // The hanging future has been dropped: only this test and `reports` hold the source.
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&source), 2);
        assert_eq!(reports.report(None, CLIENT).await, Outcome::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 31, "after the interval");
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
            let start = Instant::now();
            assert_eq!(reports.report(None, CLIENT).await, outcome);
            assert_eq!(reports.report(None, CLIENT).await, outcome);
            assert_eq!(start.elapsed().as_millis(), 1_080);
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
            requests.spawn(async move { reports.report(None, CLIENT).await });
        }
        let outcomes = requests.join_all().await;
        let made = outcomes.iter().filter(|got| **got == report("0"));
        assert_eq!(made.count(), 32);
        let later = Outcome::RetryAfter(Duration::from_secs(1));
        assert_eq!(outcomes.iter().filter(|got| **got == later).count(), 18);
    }

    /// Six clients that ask again at once, with a new nonce each time, and a seventh that asks once.
    #[tokio::test(start_paused = true)]
    async fn pollers_do_not_starve_another_client() {
        let (source, reports) = reports(SourceBehavior::Good);
        for poller in 0..6_u8 {
            let reports = Arc::clone(&reports);
            tokio::spawn(async move {
                for number in 0_u32.. {
                    let nonce = Nonce::from_hex(&format!("{poller:02x}{number:08x}")).unwrap();
                    reports.report(Some(nonce), CLIENT).await;
                }
            });
        }
        sleep(Duration::from_secs(10)).await;
        let start = Instant::now();
        let nonce = Nonce::from_hex("ff").unwrap();
        let patient = reports.report(Some(nonce), CLIENT).await;
        assert!(matches!(patient, Outcome::Report(_)), "{patient:?}");
        assert!(start.elapsed() <= Duration::from_millis(1_080));
        // Without a nonce too, although other requests wait all the time.
        let plain = reports.report(None, CLIENT).await;
        assert!(matches!(plain, Outcome::Report(_)), "{plain:?}");
        let elapsed = start.elapsed().as_millis();
        assert!(elapsed <= 3_200, "{elapsed}");
        let made = source.started.load(Ordering::Relaxed);
        assert!((10..=14).contains(&made), "{made} quotes in 13 s");
        assert_eq!(reports.stats.reports_limited(), 0);
    }
}
