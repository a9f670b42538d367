//! Connection storm: a burst of clients with unknown certificates, during running sessions.
//!
//! It measures how much the burst slows the sessions down, and whether every valid client is
//! admitted.
//!
//! The clients' handshakes need CPU too. In production they run on other machines; on a small test
//! machine they take CPU from the sessions. Therefore all first flights are computed in advance and
//! sent at the same time. After that the storm's thread runs at nice 10 and sleeps after each step,
//! so that it never occupies a core for long. The remaining CPU use makes the measured ratio an
//! upper bound.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{Either, join_all, select};

use super::query;
use crate::client::first_response;
use crate::endpoint::{Endpoint, Login, PreparedLogin};
use crate::error::{Error, Result, io_context};
use crate::progress::Progress;
use crate::runtime::{Runtime, with_timeout};
use crate::stream::{PendingHandshake, PreparedConnection};

/// Time limit for each unknown client. Longer than the sidecar's login deadline, so that the
/// sidecar's response is seen.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Nice value of the storm's thread: about a tenth of the sessions' CPU weight.
const NICE: i32 = 10;
/// How long the storm's thread keeps that nice value. On a machine without a spare core it would
/// otherwise miss the sidecar's login deadline.
const LOW_PRIORITY_TIME: Duration = Duration::from_millis(2_500);
/// Sleep after each step of an unknown client, which takes at most 0.2 ms. A thousand clients still
/// connect three times as fast as a sidecar admits them while sessions run.
const STEP_PAUSE: Duration = Duration::from_micros(200);
/// A poll shorter than this was not a step and is not followed by a sleep.
const MIN_STEP: Duration = Duration::from_micros(50);

/// Phases of the sessions' load.
const BEFORE: usize = 0;
const DURING: usize = 1;
const AFTER: usize = 2;

/// The sessions and the burst of unknown clients.
pub struct ConnectionStorm {
    /// The sessions. Their measured time is set from `before` and `during`.
    pub sessions: query::QueryLoad,
    /// One endpoint for each unknown client, with a certificate that the server has not seen.
    pub unknown_clients: Vec<Endpoint>,
    /// The role that the unknown clients log in as.
    pub login: Login,
    /// Time before the storm.
    pub before: Duration,
    /// How long the sessions continue after the storm has started.
    pub during: Duration,
}

/// Results of a connection storm.
pub struct Outcome {
    /// Results of the sessions.
    pub sessions: query::Outcome,
    /// Results of the unknown clients.
    pub admission: AdmissionCounts,
}

/// How many unknown clients were admitted.
#[derive(Clone, Debug, Default)]
pub struct AdmissionCounts {
    /// Clients that received a password request: the server has accepted their certificate.
    pub admitted: usize,
    /// Clients that did not.
    pub refused: usize,
    /// The error of the first refused client.
    pub reason: Option<String>,
    /// From the first connect to the last response.
    pub took: Duration,
}

impl Outcome {
    /// The sessions' p99 before and during the storm, in µs.
    #[must_use]
    pub fn p99(&self) -> (f64, f64) {
        (self.percentile(BEFORE, 99.0), self.percentile(DURING, 99.0))
    }

    /// The sessions' p99.9 during the storm, in µs. A stall of the whole server shows here rather
    /// than in the p99, because a closed loop sends nothing during the stall.
    #[must_use]
    pub fn p999(&self) -> f64 {
        self.percentile(DURING, 99.9)
    }

    fn percentile(&self, phase: usize, percent: f64) -> f64 {
        let phase = self.sessions.latencies.get(phase);
        phase.map_or(f64::NAN, |latencies| latencies.percentile(percent))
    }
}

impl ConnectionStorm {
    /// Runs the sessions and the storm.
    ///
    /// # Errors
    /// The failure of any session. A refused client is counted.
    pub fn run(self, progress: &Progress) -> Result<Outcome> {
        let mut sessions = self.sessions;
        sessions.timing.measured = self.before + self.during;
        let phase = Arc::clone(&sessions.phase);
        let login = self.login;
        let connections = prepare_all(&self.unknown_clients)?;
        phase.store(BEFORE, Ordering::Relaxed);
        let before = sessions.timing.warmup + self.before;
        std::thread::scope(|scope| {
            let storm = std::thread::Builder::new()
                .name("storm".to_owned())
                .spawn_scoped(scope, move || {
                    std::thread::sleep(before);
                    run_storm(connections, &login, &phase)
                })
                .map_err(io_context("cannot start the storm's thread"))?;
            let sessions = sessions.run(progress);
            let panicked = |_| Err(Error::Server("the storm's thread panicked".to_owned()));
            let admission = storm.join().unwrap_or_else(panicked);
            Ok(Outcome {
                sessions: sessions?,
                admission: admission?,
            })
        })
    }
}

fn prepare_all(unknown_clients: &[Endpoint]) -> Result<Vec<PreparedConnection<'_>>> {
    unknown_clients
        .iter()
        .map(PreparedConnection::new)
        .collect()
}

fn run_storm(
    connections: Vec<PreparedConnection<'_>>,
    login: &Login,
    phase: &AtomicUsize,
) -> Result<AdmissionCounts> {
    set_nice(NICE);
    phase.store(DURING, Ordering::Relaxed);
    let admission = connect_prepared(connections, login);
    phase.store(AFTER, Ordering::Relaxed);
    admission
}

/// Connects all clients at the same time, up to the password request, and closes them.
///
/// # Errors
/// System errors only. A refused client is counted.
pub fn connect_all(unknown_clients: &[Endpoint], login: &Login) -> Result<AdmissionCounts> {
    connect_prepared(prepare_all(unknown_clients)?, login)
}

fn connect_prepared(
    connections: Vec<PreparedConnection<'_>>,
    login: &Login,
) -> Result<AdmissionCounts> {
    let prepared = PreparedLogin::new(login)?;
    let started = Instant::now();
    let responses = Runtime::new()?.block_on(async {
        let handshakes = connections
            .into_iter()
            .map(|connection| connection.start_handshake());
        let handshakes =
            handshakes.map(|handshake| with_timeout(TIMEOUT, "an unknown client", handshake));
        let pending = join_all(handshakes).await;
        let requests = pending
            .into_iter()
            .map(|pending| request_login(pending, &prepared));
        let requests = requests.map(|request| {
            with_timeout(TIMEOUT, "an unknown client", pausing_after_steps(request))
        });
        let responses = pin!(join_all(requests));
        match select(responses, pin!(monoio::time::sleep(LOW_PRIORITY_TIME))).await {
            Either::Left((responses, _)) => responses,
            Either::Right(((), responses)) => {
                set_nice(0);
                responses.await
            }
        }
    });
    let mut admission = AdmissionCounts {
        took: started.elapsed(),
        ..AdmissionCounts::default()
    };
    for response in responses {
        if matches!(response, Ok(b'R')) {
            admission.admitted += 1;
            continue;
        }
        admission.refused += 1;
        admission.reason.get_or_insert_with(|| match response {
            Ok(tag) => format!("the server responded with {:?}", char::from(tag)),
            Err(error) => error.to_string(),
        });
    }
    Ok(admission)
}

/// Sets the nice value of this thread. Lowering it back to 0 needs a privilege (CAP_SYS_NICE);
/// without that the storm may run into its time limit.
fn set_nice(nice: i32) {
    let _ = rustix::process::setpriority_process(None, nice);
}

/// Polls `steps`, and lets the whole thread sleep after each poll that did work.
pub(crate) async fn pausing_after_steps<T>(steps: impl Future<Output = T>) -> T {
    let mut steps = pin!(steps);
    poll_fn(|cx| {
        let started = Instant::now();
        let polled = steps.as_mut().poll(cx);
        if started.elapsed() > MIN_STEP {
            std::thread::sleep(STEP_PAUSE);
        }
        polled
    })
    .await
}

async fn request_login(pending: Result<PendingHandshake>, prepared: &PreparedLogin) -> Result<u8> {
    let mut stream = pending?.finish_handshake().await?;
    first_response(&mut stream, prepared).await
}
