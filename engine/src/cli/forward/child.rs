//! `teesql-forward … -- COMMAND`: runs a command with the forwarder's address in its environment, and
//! stops the forwarder when it exits.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use percent_encoding::percent_decode_str;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use url::Url;

use crate::app::descriptors;
use crate::app::forwarder::Forwarder;
use crate::app::forwarder::dsn::encode_query_value;
use crate::app::runtime;
use crate::cli::subprocess;
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

/// libpq's variables that would bypass the forwarder, or require features of TLS, which a connection
/// to the forwarder does not use. A service file takes precedence over `PGHOST`.
const NOT_INHERITED: [&str; 8] = [
    "PGHOSTADDR",
    "PGSERVICE",
    "PGSSLNEGOTIATION",
    "PGSSLROOTCERT",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGREQUIRESSL",
    "PGREQUIREPEER",
];

/// How long sessions that the command has left open may continue after it exits.
const SESSION_GRACE: Duration = Duration::from_secs(2);

/// Runs the command until it exits. Returns its exit code, or 128 plus the number of the signal that
/// ended it.
///
/// # Errors
/// The command cannot be started.
pub(crate) fn run(
    forwarder: &mut Forwarder,
    command: &[String],
    database_url: Option<&Url>,
) -> io::Result<u8> {
    runtime::new_current_thread()?.block_on(async {
        let [program, arguments @ ..] = command else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (host, port) = forwarder.host_and_port();
        let url = match database_url {
            Some(given) => local_url(given, &host, port),
            None => forwarder.dsn(),
        };
        // Install the handlers before the child exists, so that no signal for it is lost.
        let mut signals = ForwardedSignals::new()?;
        let mut command = Command::new(program);
        for name in NOT_INHERITED {
            command.env_remove(name);
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
            .env("DATABASE_URL", url)
            .env("PGHOST", host)
            .env("PGPORT", port.to_string())
            .env("PGSSLMODE", "disable")
            .envs(libpq_variables(database_url))
            .spawn()?;
        // A program may use select(2), which cannot use descriptors above 1023.
        child
            .id()
            .into_iter()
            .for_each(descriptors::restore_limit_of);
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
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

/// Waits until the forwarder has stopped. SIGTERM and SIGINT let sessions finish; a second signal ends
/// them. SIGHUP reloads the policy.
///
/// # Errors
/// The signal handlers cannot be installed.
pub(crate) fn wait_for_signals(forwarder: &mut Forwarder) -> io::Result<()> {
    runtime::new_current_thread()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                () = forwarder.ended() => return Ok(()),
                _ = terminate.recv() => forwarder.request_stop(),
                _ = interrupt.recv() => forwarder.request_stop(),
                _ = hangup.recv() => forwarder.request_reload(),
            }
        }
    })
}

/// The connection URI with the forwarder as the server.
fn local_url(given: &Url, host: &str, port: u16) -> String {
    let mut url = given.clone();
    // Keep the encoding: not every client decodes `+` as a space.
    let kept = given.query().into_iter().flat_map(|query| query.split('&'));
    let kept = kept.filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        !pair.is_empty() && !REMOVED_PARAMETERS.contains(&name)
    });
    let mut query: Vec<String> = kept.map(str::to_owned).collect();
    let is_path = host.starts_with('/');
    // URLs of these schemes always have a host and a port.
    let _ = url.set_host(Some(if is_path { "localhost" } else { host }));
    let _ = url.set_port(Some(port));
    if is_path {
        query.push(format!("host={}", encode_query_value(host)));
    }
    query.push("sslmode=disable".to_owned());
    url.set_query(Some(&query.join("&")));
    url.into()
}

/// Role, password and database of the connection URI as libpq's variables, since libpq does not read
/// `DATABASE_URL`. Variables that are already set are left out.
fn libpq_variables(given: Option<&Url>) -> impl Iterator<Item = (&'static str, String)> {
    let text = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8().ok()?;
        (!decoded.is_empty()).then(|| decoded.into_owned())
    };
    let all = given.into_iter().flat_map(move |url| {
        [
            ("PGUSER", text(url.username())),
            ("PGPASSWORD", url.password().and_then(text)),
            ("PGDATABASE", text(url.path().trim_start_matches('/'))),
        ]
    });
    all.filter(|(name, _)| std::env::var_os(name).is_none())
        .filter_map(|(name, value)| Some((name, value?)))
}

/// Parameters about the server and TLS, which the forwarder replaces.
const REMOVED_PARAMETERS: [&str; 11] = [
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

#[cfg(test)]
mod tests {
    use super::*;

    fn local(given: &str, host: &str) -> String {
        local_url(&given.parse().unwrap(), host, 6543)
    }

    #[test]
    fn local_url_keeps_the_drivers_parameters() {
        for (given, wanted) in [
            (
                "postgres://u:p%40%3A@db.example:5433/d?sslmode=verify-full&options=-c%20a%3Db+c&application_name=a%26b",
                "postgres://u:p%40%3A@127.0.0.1:6543/d?options=-c%20a%3Db+c&application_name=a%26b&sslmode=disable",
            ),
            (
                "postgresql:///d?host=/run&port=1&sslcert=x",
                "postgresql://127.0.0.1:6543/d?sslmode=disable",
            ),
            (
                "postgres://u@[2001:db8::1]/",
                "postgres://u@127.0.0.1:6543/?sslmode=disable",
            ),
        ] {
            assert_eq!(local(given, "127.0.0.1"), wanted);
        }
        assert_eq!(
            local("postgres://u@db.example/d", "/run/my pg"),
            "postgres://u@localhost:6543/d?host=%2Frun%2Fmy%20pg&sslmode=disable"
        );
    }

    #[test]
    fn libpq_variables_have_role_password_and_database() {
        let url = "postgres://a%40b:p%2F@db.example/my%20db".parse().unwrap();
        let all: Vec<_> = libpq_variables(Some(&url))
            .map(|(_, value)| value)
            .collect();
        assert_eq!(all, ["a@b", "p/", "my db"]);
        let url = "postgres://db.example".parse().unwrap();
        assert_eq!(libpq_variables(Some(&url)).count(), 0);
    }
}
