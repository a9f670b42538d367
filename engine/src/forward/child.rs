//! `teesql-forward … -- command`: a command that finds the forwarder in its
//! environment, and whose end is the forwarder's.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::Forwarder;

/// What is passed on to the command. SIGINT and SIGQUIT of a terminal reach it
/// anyway, as one of the same process group; sent by `kill` they do not, and a
/// second one does no harm.
const PASSED_ON: [(SignalKind, Signal); 6] = [
    (SignalKind::terminate(), Signal::SIGTERM),
    (SignalKind::interrupt(), Signal::SIGINT),
    (SignalKind::hangup(), Signal::SIGHUP),
    (SignalKind::quit(), Signal::SIGQUIT),
    (SignalKind::user_defined1(), Signal::SIGUSR1),
    (SignalKind::user_defined2(), Signal::SIGUSR2),
];

/// Runs it to its end; its exit code, or 128 and the signal that ended it.
///
/// # Errors
/// It cannot be started.
pub fn run(
    forwarder: &Forwarder,
    command: &[String],
    database_url: Option<&Url>,
) -> io::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let [program, arguments @ ..] = command else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (host, port) = forwarder.host_and_port();
        // Listened for before there is a child that somebody could mean.
        let mut signals = Signals::new()?;
        let mut child = Command::new(program)
            .args(arguments)
            .env("DATABASE_URL", local_url(forwarder, database_url))
            .env("PGHOST", host)
            .env("PGPORT", port.to_string())
            .env("PGSSLMODE", "disable")
            .env_remove("PGHOSTADDR")
            .env_remove("PGSSLNEGOTIATION")
            .spawn()?;
        loop {
            tokio::select! {
                status = child.wait() => return Ok(code(status?)),
                signal = signals.next() => {
                    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                    if let Some(pid) = pid {
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                }
            }
        }
    })
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// Signals cannot be listened for.
pub fn wait_for_a_signal(forwarder: &Forwarder) -> io::Result<()> {
    /// How often a forwarder that has failed is noticed.
    const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        while forwarder.is_running() {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        Ok(())
    })
}

/// The DSN with the forwarder in the place of the server.
fn local_url(forwarder: &Forwarder, given: Option<&Url>) -> String {
    let Some(given) = given else {
        return forwarder.dsn();
    };
    let (host, port) = forwarder.host_and_port();
    let mut url = given.clone();
    let kept: Vec<(String, String)> = given
        .query_pairs()
        .filter(|(name, _)| !NOT_KEPT.contains(&name.as_ref()))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let is_path = host.starts_with('/');
    // A URL of these schemes always has a place for both.
    let _ = url.set_host(Some(if is_path { "localhost" } else { &host }));
    let _ = url.set_port(Some(port));
    let mut query = url.query_pairs_mut();
    query.clear().extend_pairs(kept);
    if is_path {
        query.append_pair("host", &host);
    }
    query.append_pair("sslmode", "disable");
    drop(query);
    url.into()
}

/// What is about the server and TLS, and the forwarder's business now.
const NOT_KEPT: [&str; 11] = [
    "host",
    "hostaddr",
    "port",
    "ssl",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslnegotiation",
    "channel_binding",
    "gssencmode",
];

fn code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(code).unwrap_or(255)
}

struct Signals(Vec<(tokio::signal::unix::Signal, Signal)>);

impl Signals {
    fn new() -> io::Result<Self> {
        let all = PASSED_ON.map(|(kind, which)| Ok((signal(kind)?, which)));
        all.into_iter().collect::<io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (signal, which) in &mut self.0 {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*which);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
