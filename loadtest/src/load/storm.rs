//! A crowd of strangers beside running sessions: what does it cost those who
//! are inside, and does everybody enter who should?
//!
//! The strangers' own handshakes need CPU too, and on a small machine they take
//! it from what is measured. Their thread stands back (nice 10), and what is
//! left of it makes the ratio an upper bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::query;
use crate::client::first_answer;
use crate::error::{Error, Result, doing};
use crate::progress::Progress;
use crate::runtime::{Runtime, within};
use crate::stream::Stream;
use crate::target::{Login, Member, Target};

/// For each stranger: longer than the sidecar's login deadline, so that its
/// answer is seen.
const PATIENCE: Duration = Duration::from_secs(15);
/// A tenth of the weight of what is measured. With less (19) the crowd, on a machine
/// without a core to spare, is too slow for the login deadline.
const NICE: i32 = 10;

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
        let p99 = |phase: usize| {
            let phase = self.sessions.latencies.get(phase);
            phase.map_or(f64::NAN, |latencies| latencies.percentile(99.0))
        };
        (p99(QUIET), p99(STORMY))
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
        let (strangers, login) = (self.strangers, self.login);
        phase.store(QUIET, Ordering::Relaxed);
        let quiet = sessions.times.warmup + self.quiet;
        std::thread::scope(|scope| {
            let crowd = std::thread::Builder::new()
                .name("crowd".to_owned())
                .spawn_scoped(scope, move || {
                    std::thread::sleep(quiet);
                    come(&strangers, &login, &phase)
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

fn come(strangers: &[Target], login: &Login, phase: &AtomicUsize) -> Result<Flood> {
    // Only of this thread.
    let _ = rustix::process::setpriority_process(None, NICE);
    phase.store(STORMY, Ordering::Relaxed);
    let flood = flood(strangers, login);
    phase.store(AFTER, Ordering::Relaxed);
    flood
}

/// All of them at once, up to the password request, and away.
///
/// # Errors
/// The system's. A stranger that is refused is counted.
pub fn flood(strangers: &[Target], login: &Login) -> Result<Flood> {
    let member = Member::new(login)?;
    let begun = Instant::now();
    let answers = Runtime::new()?.block_on(async {
        let ask = |target| within(PATIENCE, "a stranger", ask(target, &member));
        futures_util::future::join_all(strangers.iter().map(ask)).await
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

async fn ask(target: &Target, member: &Member) -> Result<u8> {
    let mut stream = Stream::open(target).await?;
    first_answer(&mut stream, member).await
}
