//! A crowd of strangers beside running sessions: what does it cost those who
//! are inside, and does everybody enter who should?
//!
//! The strangers' own handshakes need CPU too, and on a small machine they take
//! it from what is measured, where in production they are other machines. So all
//! first flights are made beforehand and sent at once; from there on the crowd's
//! thread stands back (nice 10), and rests after each step, so that it never keeps
//! a core for long. What is left of it makes the ratio an upper bound.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{Either, join_all, select};

use super::query;
use crate::client::first_answer;
use crate::endpoint::{Login, Member, Target};
use crate::error::{Error, Result, doing};
use crate::progress::Progress;
use crate::runtime::{Runtime, within};
use crate::stream::{Call, Called};

/// For each stranger: longer than the sidecar's login deadline, so that its
/// answer is seen.
const PATIENCE: Duration = Duration::from_secs(15);
/// A tenth of the weight of what is measured.
const NICE: i32 = 10;
/// So long the crowd stands back. On a machine without a core to spare it would be too
/// slow for the sidecar's login deadline otherwise.
const MODESTY: Duration = Duration::from_millis(2_500);
/// Between two strangers' steps, each of 0.2 ms at most: a thousand of them still come
/// three times as fast as a sidecar lets them in beside sessions.
const BREATH: Duration = Duration::from_micros(200);
/// What took less was no step.
const EFFORTLESS: Duration = Duration::from_micros(50);

/// The phases of a load beside a storm.
const QUIET: usize = 0;
const STORMY: usize = 1;
const AFTER: usize = 2;

/// Running sessions, and who comes.
pub struct Plan {
    /// The sessions; how long they run is set by the two times below.
    pub sessions: query::Plan,
    /// One for each stranger, with a certificate that nobody has seen.
    pub strangers: Vec<Target>,
    /// As whom they ask to be let in.
    pub login: Login,
    /// How long it is quiet first.
    pub quiet: Duration,
    /// How long the sessions go on from the strangers' arrival.
    pub stormy: Duration,
}

/// What the sessions and the strangers saw.
pub struct Outcome {
    /// The sessions'.
    pub sessions: query::Outcome,
    /// The strangers'.
    pub flood: Flood,
}

/// What the strangers saw.
#[derive(Clone, Debug, Default)]
pub struct Flood {
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
    /// The sessions' p99 in the quiet and while the strangers came, in µs.
    #[must_use]
    pub fn p99(&self) -> (f64, f64) {
        (self.percentile(QUIET, 99.0), self.percentile(STORMY, 99.0))
    }

    /// What one in a thousand of the sessions' queries took at least while the
    /// strangers came, in µs: a stall of the whole server, in which a closed loop asks
    /// nothing, shows here rather than in the p99.
    #[must_use]
    pub fn p999(&self) -> f64 {
        self.percentile(STORMY, 99.9)
    }

    fn percentile(&self, phase: usize, percent: f64) -> f64 {
        let phase = self.sessions.latencies.get(phase);
        phase.map_or(f64::NAN, |latencies| latencies.percentile(percent))
    }
}

impl Plan {
    /// Runs it.
    ///
    /// # Errors
    /// A session's failure. A stranger that is refused is counted.
    pub fn run(self, progress: &Progress) -> Result<Outcome> {
        let mut sessions = self.sessions;
        sessions.times.measured = self.quiet + self.stormy;
        let phase = Arc::clone(&sessions.phase);
        let login = self.login;
        let calls = calls(&self.strangers)?;
        phase.store(QUIET, Ordering::Relaxed);
        let quiet = sessions.times.warmup + self.quiet;
        std::thread::scope(|scope| {
            let crowd = std::thread::Builder::new()
                .name("crowd".to_owned())
                .spawn_scoped(scope, move || {
                    std::thread::sleep(quiet);
                    come(calls, &login, &phase)
                })
                .map_err(doing("cannot start a thread"))?;
            let sessions = sessions.run(progress);
            let panicked = |_| Err(Error::Server("the crowd's thread panicked".to_owned()));
            let flood = crowd.join().unwrap_or_else(panicked);
            Ok(Outcome {
                sessions: sessions?,
                flood: flood?,
            })
        })
    }
}

fn calls(strangers: &[Target]) -> Result<Vec<Call<'_>>> {
    strangers.iter().map(Call::new).collect()
}

fn come(calls: Vec<Call<'_>>, login: &Login, phase: &AtomicUsize) -> Result<Flood> {
    stand_back(NICE);
    phase.store(STORMY, Ordering::Relaxed);
    let flood = rush(calls, login);
    phase.store(AFTER, Ordering::Relaxed);
    flood
}

/// All of them at once, up to the password request, and away.
///
/// # Errors
/// The system's. A stranger that is refused is counted.
pub fn flood(strangers: &[Target], login: &Login) -> Result<Flood> {
    rush(calls(strangers)?, login)
}

fn rush(calls: Vec<Call<'_>>, login: &Login) -> Result<Flood> {
    let member = Member::new(login)?;
    let begun = Instant::now();
    let answers = Runtime::new()?.block_on(async {
        let knocks = calls.into_iter().map(|call| call.knock());
        let knocks = knocks.map(|knock| within(PATIENCE, "a stranger", knock));
        let called = join_all(knocks).await;
        let asks = called.into_iter().map(|called| ask(called, &member));
        let asks = asks.map(|ask| within(PATIENCE, "a stranger", breathing(ask)));
        let answers = pin!(join_all(asks));
        match select(answers, pin!(monoio::time::sleep(MODESTY))).await {
            Either::Left((answers, _)) => answers,
            Either::Right(((), answers)) => {
                stand_back(0);
                answers.await
            }
        }
    });
    let mut flood = Flood {
        took: begun.elapsed(),
        ..Flood::default()
    };
    for answer in answers {
        if matches!(answer, Ok(b'R')) {
            flood.admitted += 1;
            continue;
        }
        flood.refused += 1;
        flood.reason.get_or_insert_with(|| match answer {
            Ok(tag) => format!("answered with {:?}", char::from(tag)),
            Err(error) => error.to_string(),
        });
    }
    Ok(flood)
}

/// Of this thread only. Back to 0 takes a privilege; without it the crowd may be late.
fn stand_back(nice: i32) {
    let _ = rustix::process::setpriority_process(None, nice);
}

/// `steps`, and a breath of the whole thread after each.
async fn breathing<T>(steps: impl Future<Output = T>) -> T {
    let mut steps = pin!(steps);
    poll_fn(|cx| {
        let begun = Instant::now();
        let polled = steps.as_mut().poll(cx);
        if begun.elapsed() > EFFORTLESS {
            std::thread::sleep(BREATH);
        }
        polled
    })
    .await
}

async fn ask(called: Result<Called>, member: &Member) -> Result<u8> {
    let mut stream = called?.enter().await?;
    first_answer(&mut stream, member).await
}
