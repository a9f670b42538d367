//! Has quotes made as the [`Desk`] decides, and hands each report to all who wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::nonce::Nonce;
use crate::quote_limiter::{Decision, Desk};
use crate::settings::Settings;
use crate::source::Source;
use crate::stats::Stats;

/// Most requests that wait for one report. Half of the connections there are, so that a guest agent that
/// hangs does not take those of `/health`.
fn most_waiting(settings: &Settings) -> usize {
    settings.connections / 2
}

/// What becomes of a request for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// JSON.
    Report(Bytes),
    /// The source says why not.
    Unavailable(String),
    /// Not within the deadline.
    Late,
    /// The source panicked, or the server stops.
    Broken,
    /// Come back after this time.
    Later(Duration),
}

type Landing = watch::Receiver<Option<Outcome>>;

struct Board {
    desk: Desk,
    /// Of the last flight that began.
    landing: Option<Landing>,
}

/// All reports come from here.
pub(crate) struct Reports {
    source: Arc<dyn Source>,
    stats: Arc<Stats>,
    board: Mutex<Board>,
    interval: Duration,
    deadline: Duration,
    waiting: Semaphore,
}

enum Ticket {
    /// Somebody's answer already.
    Done(Outcome),
    /// Another's flight.
    Shared(Landing),
    /// This request's own.
    Own(Landing),
}

impl Reports {
    pub(crate) fn new(source: Arc<dyn Source>, stats: Arc<Stats>, settings: &Settings) -> Self {
        Self {
            source,
            stats,
            board: Mutex::new(Board {
                desk: Desk::new(settings.attestation_interval),
                landing: None,
            }),
            interval: settings.attestation_interval,
            deadline: settings.attestation_deadline,
            waiting: Semaphore::new(most_waiting(settings)),
        }
    }

    /// A report for `nonce`, or why there is none. Who drops this future leaves the flight alone.
    pub(crate) async fn report(self: &Arc<Self>, nonce: Option<Nonce>) -> Outcome {
        let (outcome, shared) = match self.ask(nonce) {
            Ticket::Done(outcome) => (outcome, true),
            Ticket::Shared(landing) => (self.wait(landing).await, true),
            Ticket::Own(landing) => (self.wait(landing).await, false),
        };
        match &outcome {
            Outcome::Report(_) if shared => self.stats.reports_shared.add(),
            Outcome::Later(_) => self.stats.reports_limited.add(),
            _ => {}
        }
        outcome
    }

    fn ask(self: &Arc<Self>, nonce: Option<Nonce>) -> Ticket {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        match (
            board.desk.ask(nonce.as_ref(), Instant::now()),
            &board.landing,
        ) {
            (Decision::Held(report), _) => Ticket::Done(Outcome::Report(report)),
            (Decision::Later(wait), _) => Ticket::Done(Outcome::Later(wait)),
            (Decision::Join, Some(landing)) => Ticket::Shared(landing.clone()),
            // Nobody flies without a landing.
            (Decision::Join, None) => Ticket::Done(Outcome::Broken),
            (Decision::Begin, _) => {
                let (sender, landing) = watch::channel(None);
                board.landing = Some(landing.clone());
                tokio::spawn(Arc::clone(self).fly(nonce, sender));
                Ticket::Own(landing)
            }
        }
    }

    async fn wait(&self, mut landing: Landing) -> Outcome {
        let Ok(_place) = self.waiting.try_acquire() else {
            return Outcome::Later(self.interval);
        };
        // The sender is only gone without a word when the runtime stops.
        match landing.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::Broken),
            Err(_) => Outcome::Broken,
        }
    }

    /// One quote, from the decision to the end of it.
    async fn fly(self: Arc<Self>, nonce: Option<Nonce>, landed: watch::Sender<Option<Outcome>>) {
        let outcome = self.make(nonce).await;
        let report = match &outcome {
            Outcome::Report(report) => Some(report.clone()),
            _ => None,
        };
        match report {
            Some(_) => self.stats.reports_made.add(),
            None => self.stats.reports_failed.add(),
        }
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.desk.ended(report, Instant::now());
        drop(board);
        landed.send_replace(Some(outcome));
    }

    /// On a task of its own, which keeps a panic there.
    async fn make(&self, nonce: Option<Nonce>) -> Outcome {
        let source = Arc::clone(&self.source);
        let mut making = tokio::spawn(async move { source.attestation(nonce).await });
        match timeout(self.deadline, &mut making).await {
            Ok(Ok(Ok(report))) => Outcome::Report(report.into()),
            Ok(Ok(Err(unavailable))) => Outcome::Unavailable(unavailable.reason),
            Ok(Err(_)) => {
                tracing::error!("the source of /attestation panicked");
                Outcome::Broken
            }
            Err(_) => {
                making.abort();
                Outcome::Late
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::source::{Reporting, Unavailable};

    /// What a quote does; each takes 40 ms of virtual time.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Conduct {
        Good,
        Failing,
        Hanging,
        Panicking,
    }

    struct Guest {
        conduct: Conduct,
        begun: AtomicU64,
    }

    impl Source for Guest {
        fn mode(&self) -> &'static str {
            "test"
        }

        fn metrics(&self, _: &Stats) -> String {
            String::new()
        }

        fn attestation(self: Arc<Self>, _: Option<Nonce>) -> Reporting {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                sleep(Duration::from_millis(40)).await;
                match self.conduct {
                    Conduct::Good => Ok(number.to_string()),
                    Conduct::Failing => Err(Unavailable::new("no agent")),
                    Conduct::Hanging => std::future::pending().await,
                    Conduct::Panicking => panic!("on purpose"),
                }
            })
        }
    }

    fn reports(conduct: Conduct) -> (Arc<Guest>, Arc<Reports>) {
        let guest = Arc::new(Guest {
            conduct,
            begun: AtomicU64::new(0),
        });
        let source: Arc<dyn Source> = Arc::clone(&guest) as _;
        let reports = Reports::new(source, Arc::default(), &Settings::default());
        (guest, Arc::new(reports))
    }

    fn report(text: &'static str) -> Outcome {
        Outcome::Report(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_one_flight_and_later_ones_its_report() {
        let (guest, reports) = reports(Conduct::Good);
        let (first, second) = tokio::join!(reports.report(None), reports.report(None));
        assert_eq!((first, second), (report("0"), report("0")));
        sleep(Duration::from_millis(990)).await;
        assert_eq!(reports.report(None).await, report("0"));
        sleep(Duration::from_millis(20)).await;
        assert_eq!(reports.report(None).await, report("1"));
        assert_eq!(guest.begun.load(Ordering::Relaxed), 2);
        let stats = &reports.stats;
        assert_eq!((stats.reports_made(), stats.reports_shared()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_does_not_cancel_the_flight() {
        let (guest, reports) = reports(Conduct::Good);
        let impatient = timeout(Duration::from_millis(5), reports.report(None)).await;
        assert!(impatient.is_err());
        assert_eq!(reports.report(None).await, report("0"));
        assert_eq!(guest.begun.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quote_that_hangs_is_given_up_at_the_deadline_and_counts() {
        let (guest, reports) = reports(Conduct::Hanging);
        let start = Instant::now();
        let (one, two) = tokio::join!(reports.report(None), reports.report(None));
        assert_eq!((one, two), (Outcome::Late, Outcome::Late));
        assert_eq!(start.elapsed().as_secs(), 15);
        assert!(matches!(reports.report(None).await, Outcome::Later(_)));
        // The future that hung has been dropped: nothing but this test and `reports` holds the guest.
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&guest), 2);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(reports.report(None).await, Outcome::Late);
        assert_eq!(guest.begun.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_use_the_interval_up() {
        for (conduct, outcome) in [
            (Conduct::Failing, Outcome::Unavailable("no agent".into())),
            (Conduct::Panicking, Outcome::Broken),
        ] {
            let (guest, reports) = reports(conduct);
            assert_eq!(reports.report(None).await, outcome);
            assert!(matches!(reports.report(None).await, Outcome::Later(_)));
            sleep(Duration::from_secs(1)).await;
            assert_eq!(reports.report(None).await, outcome);
            assert_eq!(guest.begun.load(Ordering::Relaxed), 2);
            assert_eq!(reports.stats.reports_failed(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_wait_than_half_the_connections() {
        let (_, reports) = reports(Conduct::Good);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let reports = Arc::clone(&reports);
            asking.spawn(async move { reports.report(None).await });
        }
        let outcomes = asking.join_all().await;
        let made = outcomes.iter().filter(|got| **got == report("0"));
        assert_eq!(made.count(), 32);
        let later = Outcome::Later(Duration::from_secs(1));
        assert_eq!(outcomes.iter().filter(|got| **got == later).count(), 18);
    }
}
