//! `teesql-forward … -- COMMAND`: runs a command with the forwarder's address in its environment, and
//! stops the forwarder when it exits.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::app::descriptors;
use crate::app::forwarder::Forwarder;
use crate::app::runtime;
use crate::app::systemd;
use crate::cli::subprocess;
use crate::config::connection_uri::{
    ConnectionUri, DatabaseUrl, UriError, admits_scram, is_connection_string, is_other_database,
};
use crate::config::environment;

/// Signals that are forwarded to the command.
const FORWARDED: [(SignalKind, Signal); 6] = [
    (SignalKind::terminate(), Signal::SIGTERM),
    (SignalKind::interrupt(), Signal::SIGINT),
    (SignalKind::hangup(), Signal::SIGHUP),
    (SignalKind::quit(), Signal::SIGQUIT),
    (SignalKind::user_defined1(), Signal::SIGUSR1),
    (SignalKind::user_defined2(), Signal::SIGUSR2),
];

/// libpq's variables that would bypass the forwarder, or require features of TLS or GSSAPI, which a connection to the
/// forwarder does not use. A service file takes precedence over `PGHOST`.
const NOT_INHERITED: [&str; 6] = [
    "PGHOSTADDR",
    "PGSYSCONFDIR",
    "PGCHANNELBINDING",
    "PGREQUIRESSL",
    "PGREQUIREPEER",
    "PGLOADBALANCEHOSTS",
];
/// The same for all variables that begin with one of these.
const NOT_INHERITED_PREFIXES: [&str; 4] = ["PGSERVICE", "PGSSL", "PGGSS", "PGKRB"];

/// Authentication methods that libpq requires. Those without SCRAM-SHA-256 could not be fulfilled.
const REQUIRE_AUTH: &str = "PGREQUIREAUTH";

/// The name of the database. Some of PostgreSQL's tools take it for a connection string.
const DATABASE: &str = "PGDATABASE";

/// How long sessions that the command has left open may continue after it exits.
const SESSION_GRACE: Duration = Duration::from_secs(2);

/// What the command's environment is made from.
pub(crate) struct CommandUri {
    given: Option<ConnectionUri>,
    /// The command has its own `DATABASE_URL`, for another kind of database.
    keeps_own: bool,
}

impl CommandUri {
    /// # Errors
    /// A part of the configured URI, or a variable, would lead the command around the forwarder or
    /// cannot be fulfilled by it.
    pub(crate) fn new(configured: Option<DatabaseUrl>) -> Result<Self, String> {
        if std::env::var(REQUIRE_AUTH).is_ok_and(|methods| !admits_scram(&methods)) {
            return Err(format!(
                "environment {REQUIRE_AUTH}: it excludes SCRAM-SHA-256, by which drivers authenticate: unset it"
            ));
        }
        let database = std::env::var_os(DATABASE).unwrap_or_default();
        if is_connection_string(&database.to_string_lossy()) {
            return Err(format!(
                "environment {DATABASE}: PostgreSQL's tools would take it for a connection string, which may name another \
                 server: set it to the name of a database"
            ));
        }
        let own = environment::variable("DATABASE_URL").unwrap_or_default();
        let other_database = Self {
            given: None,
            keeps_own: is_other_database(&own.to_string_lossy()),
        };
        match configured {
            None | Some(DatabaseUrl::OtherDatabase) => Ok(other_database),
            Some(DatabaseUrl::Unusable(error)) => Err(error.to_string()),
            Some(DatabaseUrl::Postgres(uri)) => {
                // Whether it can be built does not depend on the address.
                let built: Result<String, UriError> = uri.through_forwarder("127.0.0.1", 1);
                built.map_err(|error| error.to_string())?;
                Ok(Self {
                    given: Some(uri),
                    keeps_own: false,
                })
            }
        }
    }

    /// `DATABASE_URL` of the command; `None` if it keeps its own.
    fn through(&self, forwarder: &Forwarder) -> io::Result<Option<String>> {
        let (host, port) = forwarder.host_and_port();
        match &self.given {
            Some(uri) => {
                let built = uri.through_forwarder(&host, port);
                built.map(Some).map_err(io::Error::other)
            }
            None => Ok((!self.keeps_own).then(|| forwarder.dsn())),
        }
    }

    /// Role, password and database as libpq's variables, since libpq does not read `DATABASE_URL`.
    /// Variables that are already set are left out.
    fn libpq_variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = self.given.iter().flat_map(ConnectionUri::variables);
        all.filter(|(name, _)| std::env::var_os(name).is_none())
    }
}

/// Runs the command until it exits. Returns its exit code, or 128 plus the number of the signal that
/// ended it.
///
/// # Errors
/// The command cannot be started.
pub(crate) fn run(
    forwarder: &mut Forwarder,
    command: &[String],
    uri: &CommandUri,
) -> io::Result<u8> {
    runtime::new_current_thread()?.block_on(async {
        let [program, arguments @ ..] = command else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (host, port) = forwarder.host_and_port();
        let url = uri.through(forwarder)?;
        // Install the handlers before the child exists, so that no signal for it is lost.
        let mut signals = ForwardedSignals::new()?;
        let mut exits = signal(SignalKind::child())?;
        let mut command = Command::new(program);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if NOT_INHERITED_PREFIXES
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        // The forwarder's own secrets were emptied when they were read. Variables of others are passed on.
        for name in environment::taken() {
            match environment::variable(name) {
                Some(value) if !name.starts_with("TEESQL_") => command.env(name, value),
                _ => command.env_remove(name),
            };
        }
        let mut child = command
            .args(arguments)
            .envs(url.map(|url| ("DATABASE_URL", url)))
            .env("PGHOST", host)
            .env("PGPORT", port.to_string())
            .env("PGSSLMODE", "disable")
            .envs(uri.libpq_variables())
            .spawn()?;
        // A program may use select(2), which cannot use descriptors above 1023.
        child
            .id()
            .into_iter()
            .for_each(descriptors::restore_limit_of);
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                _ = exits.recv() => subprocess::reap_orphans(child.id()),
                signal = signals.next() => {
                    if signal == Signal::SIGHUP {
                        forwarder.request_reload();
                    }
                    subprocess::forward_signal(signal, &child);
                }
            }
        };
        // The last messages of the command may still be in transit.
        forwarder.request_stop();
        if timeout(SESSION_GRACE, forwarder.ended()).await.is_err() {
            forwarder.request_stop();
        }
        Ok(subprocess::exit_code(status))
    })
}

/// Tells systemd that drivers can connect, and waits until the forwarder has stopped. SIGTERM and SIGINT let sessions
/// finish; a second signal ends them. SIGHUP reloads the policy.
///
/// # Errors
/// The signal handlers cannot be installed.
pub(crate) fn wait_for_signals(forwarder: &mut Forwarder) -> io::Result<()> {
    runtime::new_current_thread()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut exits = signal(SignalKind::child())?;
        // With the handlers in place, so that a stop from now on is orderly.
        systemd::notify_ready();
        loop {
            tokio::select! {
                () = forwarder.ended() => return Ok(()),
                _ = terminate.recv() => stop(forwarder),
                _ = interrupt.recv() => stop(forwarder),
                _ = hangup.recv() => forwarder.request_reload(),
                _ = exits.recv() => subprocess::reap_orphans(None),
            }
        }
    })
}

fn stop(forwarder: &Forwarder) {
    systemd::notify_stopping();
    forwarder.request_stop();
}

struct ForwardedSignals(Vec<(tokio::signal::unix::Signal, Signal)>);

impl ForwardedSignals {
    fn new() -> io::Result<Self> {
        let all = FORWARDED.map(|(kind, which)| Ok((signal(kind)?, which)));
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
