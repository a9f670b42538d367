//! A storm of unknown_clients beside running sessions: what does it cost those who
//! are inside, and does everybody enter who should?
//!
//! The unknown_clients' own handshakes need CPU too, and on a small machine they take
//! it from what is measured, where in production they are other machines. So all
//! first flights are made beforehand and sent at once; from there on the storm's
//! thread stands back (nice 10), and rests after each step, so that it never keeps
//! a core for long. What is left of it makes the ratio an upper bound.

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

/// For each stranger: longer than the sidecar's login deadline, so that its
/// answer is seen.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A tenth of the weight of what is measured.
const NICE: i32 = 10;
/// So long the storm stands back. On a machine without a core to spare it would be too
/// slow for the sidecar's login deadline otherwise.
const LOW_PRIORITY_TIME: Duration = Duration::from_millis(2_500);
/// Between two unknown_clients' steps, each of 0.2 ms at most: a thousand of them still run_storm
/// three times as fast as a sidecar lets them in beside sessions.
const STEP_PAUSE: Duration = Duration::from_micros(200);
/// What took less was no step.
const MIN_STEP: Duration = Duration::from_micros(50);

/// The phases of a load beside a storm.
const BEFORE: usize = 0;
const DURING: usize = 1;
const AFTER: usize = 2;

/// Running sessions, and who comes.
pub struct ConnectionStorm {
    /// The sessions; how long they run is set by the two times below.
    pub sessions: query::QueryLoad,
    /// One for each stranger, with a certificate that nobody has seen.
    pub unknown_clients: Vec<Endpoint>,
    /// As whom they request_login to be let in.
    pub login: Login,
    /// How long it is before first.
    pub before: Duration,
    /// How long the sessions go on from the unknown_clients' arrival.
    pub during: Duration,
}

/// What the sessions and the unknown_clients saw.
pub struct Outcome {
    /// The sessions'.
    pub sessions: query::Outcome,
    /// The unknown_clients'.
    pub admission: AdmissionCounts,
}

/// What the unknown_clients saw.
#[derive(Clone, Debug, Default)]
pub struct AdmissionCounts {
    /// Were asked for a password, which is what an admitted stranger sees.
    pub admitted: usize,
    /// Were not.
    pub refused: usize,
    /// Why the first of those was not.
    pub reason: Option<String>,
    /// From the first one's coming to the last one's answer.
    pub took: Duration,
}

impl Outcome {
    /// The sessions' p99 in the before and while the unknown_clients came, in µs.
    #[must_use]
    pub fn p99(&self) -> (f64, f64) {
        (self.percentile(BEFORE, 99.0), self.percentile(DURING, 99.0))
    }

    /// What one in a thousand of the sessions' queries took at least while the
    /// unknown_clients came, in µs: a stall of the whole server, in which a closed loop requests
    /// nothing, shows here rather than in the p99.
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
    /// Runs it.
    ///
    /// # Errors
    /// A session's failure. A stranger that is refused is counted.
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
                .name("crowd".to_owned())
                .spawn_scoped(scope, move || {
                    std::thread::sleep(before);
                    run_storm(connections, &login, &phase)
                })
                .map_err(io_context("cannot start a thread"))?;
            let sessions = sessions.run(progress);
            let panicked = |_| Err(Error::Server("the crowd's thread panicked".to_owned()));
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

/// All of them at once, up to the password request, and away.
///
/// # Errors
/// The system's. A stranger that is refused is counted.
pub fn connect_all(unknown_clients: &[Endpoint], login: &Login) -> Result<AdmissionCounts> {
    connect_prepared(prepare_all(unknown_clients)?, login)
}

fn connect_prepared(
    connections: Vec<PreparedConnection<'_>>,
    login: &Login,
) -> Result<AdmissionCounts> {
    let prepared = PreparedLogin::new(login)?;
    let started = Instant::now();
    let answers = Runtime::new()?.block_on(async {
        let handshakes = connections
            .into_iter()
            .map(|connection| connection.start_handshake());
        let handshakes =
            handshakes.map(|start_handshake| with_timeout(TIMEOUT, "a stranger", start_handshake));
        let pending = join_all(handshakes).await;
        let requests = pending
            .into_iter()
            .map(|pending| request_login(pending, &prepared));
        let requests = requests
            .map(|request| with_timeout(TIMEOUT, "a stranger", pausing_after_steps(request)));
        let answers = pin!(join_all(requests));
        match select(answers, pin!(monoio::time::sleep(LOW_PRIORITY_TIME))).await {
            Either::Left((answers, _)) => answers,
            Either::Right(((), answers)) => {
                set_nice(0);
                answers.await
            }
        }
    });
    let mut admission = AdmissionCounts {
        took: started.elapsed(),
        ..AdmissionCounts::default()
    };
    for answer in answers {
        if matches!(answer, Ok(b'R')) {
            admission.admitted += 1;
            continue;
        }
        admission.refused += 1;
        admission.reason.get_or_insert_with(|| match answer {
            Ok(tag) => format!("answered with {:?}", char::from(tag)),
            Err(error) => error.to_string(),
        });
    }
    Ok(admission)
}

/// Of this thread only. Back to 0 takes a privilege; without it the storm may be late.
fn set_nice(nice: i32) {
    let _ = rustix::process::setpriority_process(None, nice);
}

/// `steps`, and a breath of the whole thread after each.
async fn pausing_after_steps<T>(steps: impl Future<Output = T>) -> T {
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
