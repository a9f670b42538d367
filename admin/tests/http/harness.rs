//! A server with a source whose conduct a test chooses.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use admin::{Latch, Nonce, Readiness, Reporting, Server, Settings, Source, Stats, Unavailable};

use crate::client::PATIENCE;

/// What a quote takes on TDX hardware.
pub(crate) const QUOTE: Duration = Duration::from_millis(39);

/// How the source behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// A report after [`QUOTE`].
    Good,
    /// An error after [`QUOTE`].
    Failing,
    /// Nothing, ever.
    Hanging,
    /// A panic in everything that it is asked.
    Panicking,
    /// Metrics of 32 MiB.
    Verbose,
}

pub(crate) struct Actor {
    conduct: Conduct,
    /// Beginning and end of each quote.
    pub(crate) quotes: Mutex<Vec<(Instant, Option<Instant>)>>,
}

impl Actor {
    fn act(&self) {
        assert!(self.conduct != Conduct::Panicking, "on purpose");
    }

    pub(crate) fn calls(&self) -> usize {
        self.quotes.lock().unwrap().len()
    }
}

impl Source for Actor {
    fn mode(&self) -> &'static str {
        self.act();
        "simulator"
    }

    fn metrics(&self, own: &Stats) -> String {
        self.act();
        let thread = std::thread::current().name().map(str::to_owned);
        let padding = match self.conduct {
            Conduct::Verbose => "x".repeat(32 << 20),
            _ => String::new(),
        };
        let connections = own.connections();
        format!("connections {connections}\n# thread {thread:?}\n{padding}")
    }

    fn attestation(self: Arc<Self>, nonce: Option<Nonce>) -> Reporting {
        let number = self.calls();
        self.quotes.lock().unwrap().push((Instant::now(), None));
        self.act();
        Box::pin(async move {
            tokio::time::sleep(QUOTE).await;
            if self.conduct == Conduct::Hanging {
                std::future::pending::<()>().await;
            }
            self.quotes.lock().unwrap()[number].1 = Some(Instant::now());
            match self.conduct {
                Conduct::Failing => Err(Unavailable::new("the guest agent is gone")),
                _ => Ok(report(nonce.as_ref(), number)),
            }
        })
    }
}

fn report(nonce: Option<&Nonce>, number: usize) -> String {
    let nonce = nonce.map(Nonce::to_string);
    serde_json::json!({ "number": number, "nonce": nonce }).to_string()
}

/// Looks every 5 ms, and not for ever.
pub(crate) fn wait_until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) actor: Arc<Actor>,
    pub(crate) latch: Latch,
}

impl Stage {
    /// The default limits, but one quote an hour: nothing depends on how fast a test is.
    pub(crate) fn new(conduct: Conduct) -> Self {
        Self::with(conduct, Self::settings())
    }

    pub(crate) fn settings() -> Settings {
        Settings {
            attestation_interval: Duration::from_secs(3_600),
            ..Settings::default()
        }
    }

    pub(crate) fn with(conduct: Conduct, settings: Settings) -> Self {
        let actor = Arc::new(Actor {
            conduct,
            quotes: Mutex::default(),
        });
        let readiness = Readiness::new();
        let latch = readiness.latch("identity", "no certificate yet");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = admin::start(listener, readiness, Arc::clone(&actor), settings).unwrap();
        Self {
            server,
            actor,
            latch,
        }
    }

    /// Returns when the first quote has begun.
    pub(crate) fn wait_for_quote(&self) {
        wait_until(|| self.actor.calls() > 0);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }
}
