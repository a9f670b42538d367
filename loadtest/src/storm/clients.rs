//! The clients of a storm in one process, and the process as its parent sees it.
//!
//! Certificates and ClientHellos are computed in advance. A client whose attempt is refused with 57P03 comes back, as
//! connection pools do: after a random part of a back-off that doubles (exponential back-off with full jitter), a
//! limited number of times.
//!
//! The process says `ready` in a line of its stdout, connects its clients when its stdin has a line, and writes
//! [`Results`] as JSON in another line.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use wire::error::BackendError;

use crate::client::Client;
use crate::endpoint::{Endpoint, Login, Opening, PreparedLogin};
use crate::error::{Error, Result, io_context};
use crate::load::connection_storm::pausing_after_steps;
use crate::machine::raise_descriptor_limit;
use crate::mock_tdx::MockTdx;
use crate::peers::process::command;
use crate::peers::workspace::Workspace;
use crate::process_usage;
use crate::runtime::{Runtime, with_timeout};
use crate::stream::PreparedConnection;

/// Time limit of one attempt, which includes the kernel's retransmissions of SYN.
const TIMEOUT: Duration = Duration::from_secs(40);
/// What is counted if a client closes its connection before it has an answer.
const IMPATIENT: &str = "the client's patience";
/// Attempts of one client.
const MAX_ATTEMPTS: usize = 5;
/// The longest wait before the second attempt. It doubles with each further one.
const BACK_OFF: Duration = Duration::from_secs(1);
/// The SQLSTATE on which a client comes back: cannot_connect_now.
const COME_BACK: &str = "57P03";
/// Clients with the same source address.
const CLIENTS_PER_ADDRESS: usize = 250;
/// Where the process reads the secret from.
const SECRET: &str = "PGPASSWORD";

/// The clients of one process.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// The server.
    pub to: SocketAddr,
    /// Number of the first client of this process among all.
    pub first: usize,
    /// How many clients this process has.
    pub count: usize,
    /// Platforms of their certificates.
    pub platforms: u8,
    /// How long a client waits before it closes its connection and comes back, as after a refusal.
    pub patience: Option<Duration>,
}

/// What clients have seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// When each admitted client had logged in, in ms since the first connect.
    pub admitted_after_ms: Vec<u32>,
    /// Those of them that had been refused with 57P03, or had no patience, before.
    pub admitted_after_refusal: usize,
    /// Attempts that were refused, by SQLSTATE and text, or given up.
    pub refusals: BTreeMap<String, usize>,
    /// How long a refused attempt took, in ms.
    pub refused_after_ms: Vec<u32>,
    /// Clients whose last attempt was refused, by SQLSTATE and text.
    pub gave_up: BTreeMap<String, usize>,
    /// Clients that got no answer.
    pub unanswered: BTreeMap<String, usize>,
    /// CPU time of the process from the first connect to the last result, in ms.
    pub cpu_ms: f64,
    /// Memory of the prepared clients in KB.
    pub kilobytes: f64,
}

impl Results {
    /// Adds the results of another process.
    pub fn add(&mut self, other: Self) {
        self.admitted_after_ms.extend(other.admitted_after_ms);
        self.refused_after_ms.extend(other.refused_after_ms);
        self.admitted_after_refusal += other.admitted_after_refusal;
        self.cpu_ms += other.cpu_ms;
        self.kilobytes += other.kilobytes;
        for (mine, theirs) in [
            (&mut self.refusals, other.refusals),
            (&mut self.gave_up, other.gave_up),
            (&mut self.unanswered, other.unanswered),
        ] {
            for (reason, count) in theirs {
                *mine.entry(reason).or_default() += count;
            }
        }
    }

    fn count(&mut self, outcome: ClientOutcome) {
        for refusal in &outcome.refusals {
            *self.refusals.entry(refusal.text.clone()).or_default() += 1;
            self.refused_after_ms.push(millis(refusal.after));
        }
        match outcome.end {
            Ok(after) => {
                self.admitted_after_ms.push(millis(after));
                self.admitted_after_refusal += usize::from(!outcome.refusals.is_empty());
            }
            Err(End::GaveUp(text)) => *self.gave_up.entry(text).or_default() += 1,
            Err(End::Unanswered(text)) => *self.unanswered.entry(text).or_default() += 1,
        }
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// A process with clients. Dropping it ends it.
pub struct ClientProcess {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl ClientProcess {
    /// Starts the process, which prepares its clients.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(workspace: &Workspace, clients: &Clients) -> Result<Self> {
        let program = workspace.program("teesql-loadtest")?;
        let mut process = command(&program, &workspace.cores.others, false);
        process
            .arg("storm-clients")
            .args(["--to", &clients.to.to_string()])
            .args(["--first", &clients.first.to_string()])
            .args(["--clients", &clients.count.to_string()])
            .args(["--platforms", &clients.platforms.to_string()])
            .args(
                clients.patience.iter().flat_map(|patience| {
                    ["--patience".to_owned(), patience.as_secs_f64().to_string()]
                }),
            )
            .env(SECRET, &workspace.read_secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = process
            .spawn()
            .map_err(io_context("cannot start storm-clients"))?;
        let output = child.stdout.take().map(BufReader::new);
        let output = output.ok_or(Error::Stopped)?;
        Ok(Self { child, output })
    }

    /// Waits until the clients are prepared.
    ///
    /// # Errors
    /// The process has ended.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.line().map(drop)
    }

    /// Lets the clients connect.
    ///
    /// # Errors
    /// The process has ended.
    pub fn begin(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().ok_or(Error::Stopped)?;
        stdin
            .write_all(b"go\n")
            .map_err(io_context("storm-clients"))
    }

    /// Waits for the results.
    ///
    /// # Errors
    /// The process has ended without them.
    pub fn results(mut self) -> Result<Results> {
        let line = self.line()?;
        serde_json::from_str(&line)
            .map_err(|error| Error::Peer(format!("storm-clients: {error}: {line}")))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        match read.map_err(io_context("storm-clients"))? {
            0 => Err(Error::Peer("storm-clients has ended".to_owned())),
            _ => Ok(line),
        }
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// Serves as the process that a parent has started.
///
/// # Errors
/// System errors. A refused client is counted.
pub fn serve(clients: &Clients) -> Result<()> {
    let _ = raise_descriptor_limit();
    let secret = std::env::var(SECRET).map_err(|_| Error::Usage(format!("{SECRET} is not set")))?;
    let login = Login::new("teesql_read", "postgres", &secret);
    let before = process_usage::memory(std::process::id())?.rss;
    let tdx = MockTdx::with_platforms(clients.platforms)?;
    let endpoints = (clients.first..clients.first + clients.count).map(|number| {
        let identity = tdx.identity_on(number, &format!("storm {number}"))?;
        Endpoint::loopback(clients.to, Opening::Direct, Some(&identity))
    });
    let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
    let prepared = endpoints.iter().map(PreparedConnection::new);
    let prepared = prepared.collect::<Result<Vec<_>>>()?;
    let memory = process_usage::memory(std::process::id())?.rss;
    say("ready")?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    if read.map_err(io_context("cannot read stdin"))? == 0 {
        return Err(Error::Stopped);
    }
    let cpu = process_usage::own_cpu()?;
    let mut results = connect(clients, &endpoints, prepared, &login)?;
    results.cpu_ms = (process_usage::own_cpu()? - cpu).as_secs_f64() * 1e3;
    results.kilobytes = kilobytes(memory.saturating_sub(before));
    let text = serde_json::to_string(&results)
        .map_err(|error| Error::Peer(format!("the results: {error}")))?;
    say(&text)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn kilobytes(bytes: u64) -> f64 {
    bytes as f64 / 1e3
}

fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(io_context("cannot write to stdout"))
}

/// Connects all clients at the same time, and waits for all of them.
fn connect<'a>(
    clients: &Clients,
    endpoints: &'a [Endpoint],
    prepared: Vec<PreparedConnection<'a>>,
    login: &Login,
) -> Result<Results> {
    let login = PreparedLogin::new(login)?;
    let outcomes = Runtime::new()?.block_on(async {
        let started = Instant::now();
        let numbered = endpoints.iter().zip(prepared).zip(clients.first..);
        let all = numbered.map(|((endpoint, prepared), number)| {
            let client = StormClient {
                endpoint,
                source: source(number),
                login: &login,
                started,
                patience: clients.patience.unwrap_or(TIMEOUT),
            };
            pausing_after_steps(client.run(prepared))
        });
        join_all(all).await
    });
    let mut results = Results::default();
    outcomes
        .into_iter()
        .for_each(|outcome| results.count(outcome));
    Ok(results)
}

/// The source address of a client: 127.1.0.1 and the following ones.
fn source(number: usize) -> Ipv4Addr {
    let network = u32::from(Ipv4Addr::new(127, 1, 0, 1));
    let offset = u32::try_from(number / CLIENTS_PER_ADDRESS).unwrap_or(0);
    Ipv4Addr::from(network + offset)
}

/// One client, which comes back if it is told to.
struct StormClient<'a> {
    endpoint: &'a Endpoint,
    source: Ipv4Addr,
    login: &'a PreparedLogin,
    started: Instant,
    patience: Duration,
}

/// An attempt that was refused with an SQLSTATE.
struct Refusal {
    text: String,
    after: Duration,
}

/// What became of a client that was not admitted.
enum End {
    GaveUp(String),
    Unanswered(String),
}

struct ClientOutcome {
    refusals: Vec<Refusal>,
    /// When it had logged in, since the first connect of all.
    end: std::result::Result<Duration, End>,
}

impl<'a> StormClient<'a> {
    async fn run(self, mut connection: PreparedConnection<'a>) -> ClientOutcome {
        let mut refusals = Vec::new();
        loop {
            let began = Instant::now();
            let ended = with_timeout(self.patience, IMPATIENT, self.attempt(connection)).await;
            let (text, comes_back) = match ended {
                Ok(()) => {
                    let end = Ok(self.started.elapsed());
                    return ClientOutcome { refusals, end };
                }
                Err(Error::Login(BackendError::Refused { sqlstate, message })) => {
                    let text = format!("{}: {message}", sqlstate.as_str());
                    (text, sqlstate.as_str() == COME_BACK)
                }
                Err(error @ Error::Timeout(_)) if self.patience < TIMEOUT => {
                    (error.to_string(), true)
                }
                Err(error) => {
                    let end = Err(End::Unanswered(error.to_string()));
                    return ClientOutcome { refusals, end };
                }
            };
            refusals.push(Refusal {
                text: text.clone(),
                after: began.elapsed(),
            });
            if !comes_back || refusals.len() >= MAX_ATTEMPTS {
                let end = Err(End::GaveUp(text));
                return ClientOutcome { refusals, end };
            }
            let wait = back_off(refusals.len(), fastrand::f64());
            monoio::time::sleep(wait).await;
            connection = match PreparedConnection::new(self.endpoint) {
                Ok(next) => next,
                Err(error) => {
                    let end = Err(End::Unanswered(error.to_string()));
                    return ClientOutcome { refusals, end };
                }
            };
        }
    }

    /// Logs in, and ends the session.
    async fn attempt(&self, connection: PreparedConnection<'_>) -> Result<()> {
        let handshake = connection.start_handshake_from(self.source).await?;
        let stream = handshake.finish_handshake().await?;
        let client = Client::log_in_over(stream, self.login).await?;
        // What happens at the end of a session is not measured.
        let _ = client.close().await;
        Ok(())
    }
}

/// The wait after attempt number `attempt`, from 1; `random` is 0 to 1.
fn back_off(attempt: usize, random: f64) -> Duration {
    (BACK_OFF * (1 << attempt.saturating_sub(1).min(10))).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_and_is_random() {
        assert_eq!(back_off(1, 1.0), BACK_OFF);
        assert_eq!(back_off(3, 1.0), 4 * BACK_OFF);
        assert_eq!(back_off(2, 0.25), BACK_OFF / 2);
    }

    #[test]
    fn results_of_processes_add_up() {
        let refusal = || Refusal {
            text: "57P03: later".to_owned(),
            after: Duration::from_millis(3),
        };
        let ends = [
            (0, Ok(Duration::from_millis(5))),
            (1, Ok(Duration::from_millis(9))),
            (5, Err(End::GaveUp("57P03: later".to_owned()))),
            (0, Err(End::Unanswered("closed".to_owned()))),
        ];
        let (mut first, mut second) = (Results::default(), Results::default());
        for (position, (refusals, end)) in ends.into_iter().enumerate() {
            let results = match position % 2 {
                0 => &mut first,
                _ => &mut second,
            };
            results.count(ClientOutcome {
                refusals: (0..refusals).map(|_| refusal()).collect(),
                end,
            });
        }
        first.add(second);
        assert_eq!(first.admitted_after_ms, [5, 9]);
        assert_eq!(first.admitted_after_refusal, 1);
        assert_eq!(first.refusals["57P03: later"], 6);
        assert_eq!(first.refused_after_ms, [3; 6]);
        assert_eq!(first.gave_up["57P03: later"], 1);
        assert_eq!(first.unanswered["closed"], 1);
    }

    #[test]
    fn clients_share_few_source_addresses() {
        assert_eq!(source(0), Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(source(CLIENTS_PER_ADDRESS), Ipv4Addr::new(127, 1, 0, 2));
        assert!(source(100_000).is_loopback());
    }
}
