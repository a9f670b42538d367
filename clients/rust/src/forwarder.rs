//! The forwarder and its builder.

use std::sync::Arc;
use std::time::Duration;

use engine::embed::{self, ApplicationVerifier, Error, Failure, Options};

use crate::{Identity, ManifestSigner, Policy, Verifier};

/// What names a cluster instead of a server.
const CLUSTER_SETTINGS: [&str; 3] = ["cluster", "manifest_signer", "follow"];

/// A running forwarder. Dropping it ends its sessions; [`stop`](Self::stop) lets them finish.
///
/// After a `fork`, every method returns an error of [`ErrorKind::Forked`](crate::ErrorKind::Forked) in the child, which has
/// none of the threads. Start another forwarder there.
#[derive(Debug)]
pub struct Forwarder(embed::Forwarder);

impl Forwarder {
    /// A forwarder with the default settings.
    pub fn builder() -> Builder {
        Builder::new(false)
    }

    /// A forwarder with the settings in the environment: `DATABASE_URL` and `TEESQL_…`, and those of the TOML file in
    /// `TEESQL_CONFIG`. What the builder sets takes precedence.
    pub fn from_env() -> Builder {
        Builder::new(true)
    }

    /// Host and port in the form of `PGHOST` and `PGPORT`. Of a Unix socket the host is its directory.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`](crate::ErrorKind::Forked), [`ErrorKind::Stopped`](crate::ErrorKind::Stopped).
    pub fn host_and_port(&self) -> Result<(String, u16), Error> {
        self.0.host_and_port()
    }

    /// The DSN for a driver: that of [`Builder::url`] with this forwarder as its server and without TLS, or if there is
    /// none, one without role, password and database. It may contain a secret.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`](crate::ErrorKind::Forked), [`ErrorKind::Stopped`](crate::ErrorKind::Stopped).
    pub fn dsn(&self) -> Result<String, Error> {
        self.0.dsn()
    }

    /// Another DSN with this forwarder as its server. The server in `url` is ignored: it names role, secret, database and
    /// parameters.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) if `url` is not a connection URI, or has a parameter
    /// that would lead a driver around the forwarder; [`ErrorKind::Forked`](crate::ErrorKind::Forked),
    /// [`ErrorKind::Stopped`](crate::ErrorKind::Stopped).
    pub fn rewrite(&self, url: &str) -> Result<String, Error> {
        self.0.rewrite(url)
    }

    /// The newest connection that was refused or ended by an error, and why.
    ///
    /// A refusal is recorded before the driver learns of it: after a driver's error this is its cause, unless another
    /// connection failed at the same time.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        self.0.last_failure()
    }

    /// The failures after the one with this number, oldest first; with 0, all that are kept, which are the newest 32.
    #[must_use]
    pub fn failures_after(&self, sequence: u64) -> Vec<Failure> {
        self.0.failures_after(sequence)
    }

    /// Stops accepting connections, lets sessions finish for [`Builder::drain_timeout`], then terminates them. When it
    /// returns, no thread, socket or file of this forwarder is left. A further call returns when the first one does.
    ///
    /// # Errors
    /// [`ErrorKind::System`](crate::ErrorKind::System) if the forwarder had failed;
    /// [`ErrorKind::Forked`](crate::ErrorKind::Forked).
    pub async fn stop(&self) -> Result<(), Error> {
        self.0.stop().await
    }

    /// As [`stop`](Self::stop), and blocks the thread meanwhile.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn stop_blocking(&self) -> Result<(), Error> {
        self.0.stop_blocking()
    }

    /// Stops without waiting for sessions: they are terminated. Does not wait; [`stop`](Self::stop) does, and may be called
    /// before or after it.
    pub fn terminate(&self) {
        self.0.terminate();
    }

    /// The options with which sqlx connects through this forwarder.
    ///
    /// # Errors
    /// As [`dsn`](Self::dsn); [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) if sqlx does not know a
    /// parameter of the DSN.
    #[cfg(feature = "sqlx")]
    pub fn pg_connect_options(&self) -> Result<sqlx::postgres::PgConnectOptions, Error> {
        let options = self.dsn()?.parse();
        options.map_err(|error: sqlx::Error| Error::configuration(error.to_string()))
    }

    /// The configuration with which tokio-postgres connects through this forwarder, with `tokio_postgres::NoTls`.
    ///
    /// # Errors
    /// As [`dsn`](Self::dsn); [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) if tokio-postgres does not know
    /// a parameter of the DSN.
    #[cfg(feature = "tokio-postgres")]
    pub fn tokio_postgres_config(&self) -> Result<tokio_postgres::Config, Error> {
        let config = self.dsn()?.parse();
        config.map_err(|error: tokio_postgres::Error| Error::configuration(error.to_string()))
    }
}

/// The settings of a [`Forwarder`]. Mistakes are reported by [`start`](Self::start), all together.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    options: Options,
    verifier_timeout: Option<Duration>,
}

impl Builder {
    fn new(from_environment: bool) -> Self {
        let options = Options {
            from_environment,
            ..Options::default()
        };
        Self {
            options,
            verifier_timeout: None,
        }
    }

    /// A connection URI, `postgresql://role:secret@host:port/database`. It names the server, unless
    /// [`target`](Self::target) or [`cluster`](Self::cluster) does, and the rest is for [`Forwarder::dsn`]. Several hosts
    /// are tried in turn. The port is 5433 if it is not given.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.options.hide(&["target"]);
        self.options.hide(&CLUSTER_SETTINGS);
        self.setting("database_url", url)
    }

    /// The server, `host:port`. Several, separated by commas, are tried in turn.
    pub fn target(mut self, host_and_port: impl Into<String>) -> Self {
        self.options.hide(&CLUSTER_SETTINGS);
        self.setting("target", host_and_port)
    }

    /// The leader of a cluster, which the manifest at `_teesql-leader.<domain>` names, signed by `signer`.
    pub fn cluster(mut self, domain: impl Into<String>, signer: ManifestSigner) -> Self {
        self.options.hide(&["target"]);
        self.setting("cluster", domain)
            .setting("manifest_signer", signer.to_string())
    }

    /// The client certificate. [`Identity::guest_agent`] if it is not set.
    pub fn identity(mut self, identity: Identity) -> Self {
        identity.apply(&mut self.options);
        self
    }

    /// What servers have to prove. It must say which application the server is.
    pub fn policy(mut self, policy: Policy) -> Self {
        policy.apply(&mut self.options);
        self
    }

    /// A further decision about servers that are genuine, bound to their key and allowed by the policy: it can only
    /// refuse. It is asked for each connection. Replaces a verifier that was set before.
    pub fn verifier(mut self, verifier: impl Verifier) -> Self {
        let own = ApplicationVerifier::new(Arc::new(verifier), false);
        self.options.verifier = Some(own);
        self
    }

    /// Has `verifier` decide whether quotes are genuine, instead of verifying them by Intel's collateral (DCAP). The
    /// binding of the quote to the server's key, the event log and the policy are checked all the same, with the TCB status
    /// that the verifier reports. Its acceptance holds for up to 10 minutes. Replaces a verifier that was set before.
    ///
    /// A verifier that accepts everything makes the connection open to man-in-the-middle attacks.
    pub fn dangerous_verifier_instead_of_dcap(mut self, verifier: impl Verifier) -> Self {
        let own = ApplicationVerifier::new(Arc::new(verifier), true);
        self.options.verifier = Some(own);
        self
    }

    /// How long the verifier may take for one decision; 10 s if it is not set. The connection is then refused.
    pub fn verifier_timeout(mut self, timeout: Duration) -> Self {
        self.verifier_timeout = Some(timeout);
        self
    }

    /// The limit for each connection attempt, and again for the TLS handshake.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.setting("connect_timeout", text(timeout))
    }

    /// The limit for the first client certificate.
    pub fn start_timeout(self, timeout: Duration) -> Self {
        self.setting("start_timeout", text(timeout))
    }

    /// How long [`Forwarder::stop`] lets sessions finish; 2 s if it is not set.
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        self.setting("drain_timeout", text(timeout))
    }

    /// Any setting of `teesql-forward`, by its name in the configuration file: `("pccs", "phala")`. An unknown name is an
    /// error of [`start`](Self::start). `log`, `log_format` and `admin_listen` have no effect here. With `shards` the
    /// forwarder has that many dedicated threads for connections, instead of the shared one; `driver`, `pin` and
    /// `busy_poll` have an effect only then.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.set(name, value);
        self
    }

    /// Starts the forwarder, and returns when drivers can connect. It listens on a free port of 127.0.0.1, unless the
    /// setting `forward_listen` says otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration);
    /// [`ErrorKind::Identity`](crate::ErrorKind::Identity) without a client certificate;
    /// [`ErrorKind::System`](crate::ErrorKind::System).
    pub async fn start(self) -> Result<Forwarder, Error> {
        embed::Forwarder::start(self.into_options())
            .await
            .map(Forwarder)
    }

    /// As [`start`](Self::start), and blocks the thread meanwhile.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_blocking(self) -> Result<Forwarder, Error> {
        embed::Forwarder::start_blocking(self.into_options()).map(Forwarder)
    }

    fn into_options(self) -> Options {
        let mut options = self.options;
        if let (Some(own), Some(timeout)) = (&mut options.verifier, self.verifier_timeout) {
            own.timeout = timeout;
        }
        options
    }
}

/// A duration as the text of a setting.
fn text(time: Duration) -> String {
    format!("{}us", time.as_micros())
}
