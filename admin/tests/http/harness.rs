//! Test harness: a server with a source whose behavior the test chooses.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use admin::status::Status;
use admin::{Latch, Nonce, Readiness, ReportFuture, Server, Settings, Source, Stats, Unavailable};

use crate::client::TIMEOUT;

/// Duration of a quote on TDX hardware.
pub(crate) const QUOTE_DURATION: Duration = Duration::from_millis(39);

/// How the source behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceBehavior {
    /// A report after [`QUOTE_DURATION`].
    Good,
    /// An error after [`QUOTE_DURATION`].
    Failing,
    /// A report that never completes.
    Hanging,
    /// A panic in every method.
    Panicking,
    /// Metrics of 32 MiB.
    Verbose,
}

pub(crate) struct TestSource {
    behavior: SourceBehavior,
    /// Start and end of each quote.
    pub(crate) quotes: Mutex<Vec<(Instant, Option<Instant>)>>,
    /// How often the status was asked for.
    pub(crate) statuses: AtomicUsize,
}

impl TestSource {
    fn maybe_panic(&self) {
        assert!(self.behavior != SourceBehavior::Panicking, "on purpose");
    }

    pub(crate) fn calls(&self) -> usize {
        self.quotes.lock().unwrap().len()
    }
}

impl Source for TestSource {
    fn mode(&self) -> &'static str {
        self.maybe_panic();
        "simulator"
    }

    fn metrics(&self, own: &Stats) -> String {
        self.maybe_panic();
        let thread = std::thread::current().name().map(str::to_owned);
        let padding = match self.behavior {
            SourceBehavior::Verbose => "x".repeat(32 << 20),
            _ => String::new(),
        };
        let connections = own.connections();
        format!("connections {connections}\n# thread {thread:?}\n{padding}")
    }

    fn status(&self, own: &Stats) -> Option<Status> {
        self.maybe_panic();
        self.statuses.fetch_add(1, Ordering::Relaxed);
        Some(Status {
            program: format!("test {}", own.connections()),
            ..Status::default()
        })
    }

    fn attestation(self: Arc<Self>, nonces: Vec<Nonce>) -> ReportFuture {
        let number = self.calls();
        self.quotes.lock().unwrap().push((Instant::now(), None));
        self.maybe_panic();
        Box::pin(async move {
            tokio::time::sleep(QUOTE_DURATION).await;
            if self.behavior == SourceBehavior::Hanging {
                std::future::pending::<()>().await;
            }
            self.quotes.lock().unwrap()[number].1 = Some(Instant::now());
            match self.behavior {
                SourceBehavior::Failing => Err(Unavailable::new("the guest agent is unreachable")),
                _ => Ok(report(&nonces, number)),
            }
        })
    }
}

fn report(nonces: &[Nonce], number: usize) -> String {
    let nonces: Vec<_> = nonces.iter().map(Nonce::to_string).collect();
    serde_json::json!({ "number": number, "nonces": nonces }).to_string()
}

/// Polls `condition` every 5 ms, at most for [`TIMEOUT`].
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < TIMEOUT,
            "timed out waiting for the condition"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Harness {
    pub(crate) server: Server,
    pub(crate) source: Arc<TestSource>,
    pub(crate) latch: Latch,
}

impl Harness {
    /// Starts a server with the default limits but one quote per hour, so that no test depends on
    /// its own speed.
    pub(crate) fn new(behavior: SourceBehavior) -> Self {
        Self::with(behavior, Self::settings())
    }

    pub(crate) fn settings() -> Settings {
        Settings {
            attestation_interval: Duration::from_secs(3_600),
            ..Settings::default()
        }
    }

    pub(crate) fn with(behavior: SourceBehavior, settings: Settings) -> Self {
        let source = Arc::new(TestSource {
            behavior,
            quotes: Mutex::default(),
            statuses: AtomicUsize::new(0),
        });
        let readiness = Readiness::new();
        let latch = readiness.latch("identity", "no certificate yet");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = admin::start(listener, readiness, Arc::clone(&source), settings).unwrap();
        Self {
            server,
            source,
            latch,
        }
    }

    /// Returns when the first quote has started.
    pub(crate) fn wait_for_quote(&self) {
        wait_until(|| self.source.calls() > 0);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }
}
