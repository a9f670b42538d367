//! Connect to a TeeSQL database from any PostgreSQL driver, through an attested connection.
//!
//! A [`Forwarder`] listens on this machine and forwards each connection over mutual RA-TLS to a TeeSQL sidecar, but only
//! after that has proved by its TDX quote which code it runs. The driver behind it needs no TLS: it gets a DSN.
//!
//! ```no_run
//! # async fn example() -> Result<(), teesql::Error> {
//! let forwarder = teesql::Forwarder::from_env().start().await?;
//! println!("{}", forwarder.dsn()?); // postgresql://teesql_read:…@127.0.0.1:40123/postgres?sslmode=disable
//! forwarder.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! What this crate does to the process that it is part of: all forwarders share one control thread, one verification
//! thread and one thread for connections, which live while any forwarder lives. It installs no signal handler, no panic
//! hook and no global logger (events go to `tracing`), and changes no limit and no environment variable.
//!
//! Futures of this crate may be awaited on any executor. Each has a counterpart that blocks.
//!
//! It must never let the check be skipped that the quote belongs to the key of the server's certificate: no verifier, no
//! policy and no setting turns it off while quotes are verified at all.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

// ---------------------------------------------------------------------------------------------------------------------
// Forwarder
// ---------------------------------------------------------------------------------------------------------------------

/// A running forwarder. Dropping it ends its sessions; [`stop`](Self::stop) lets them finish.
///
/// After a `fork`, every method returns an error of [`ErrorKind::Forked`] in the child, which has none of the threads.
/// Start another forwarder there.
#[derive(Debug)]
pub struct Forwarder {}

impl Forwarder {
    /// A forwarder with the default settings.
    #[must_use]
    pub fn builder() -> Builder {
        todo!()
    }

    /// A forwarder with the settings in the environment: `DATABASE_URL` and `TEESQL_…`, and those of the TOML file in
    /// `TEESQL_CONFIG`. What the builder sets takes precedence.
    #[must_use]
    pub fn from_env() -> Builder {
        todo!()
    }

    /// Host and port in the form of `PGHOST` and `PGPORT`. Of a Unix socket the host is its directory.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`], [`ErrorKind::Stopped`].
    pub fn host_and_port(&self) -> Result<(String, u16), Error> {
        todo!()
    }

    /// The DSN for a driver: that of [`Builder::url`] with this forwarder as its server and without TLS, or if there is
    /// none, one without role, password and database. It may contain a secret.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`], [`ErrorKind::Stopped`].
    pub fn dsn(&self) -> Result<String, Error> {
        todo!()
    }

    /// Another DSN with this forwarder as its server. The server in `url` is ignored: it names role, secret, database and
    /// parameters.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] if `url` is not a connection URI, or has a parameter that would lead a driver around
    /// the forwarder; [`ErrorKind::Forked`], [`ErrorKind::Stopped`].
    pub fn rewrite(&self, url: &str) -> Result<String, Error> {
        todo!()
    }

    /// The newest connection that was refused or ended by an error, and why.
    ///
    /// It is recorded before the driver learns of it: after a driver's error this is its cause, unless another
    /// connection failed at the same time.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        todo!()
    }

    /// The failures after the one with this number, oldest first; with 0, all that are kept, which are the newest 32.
    #[must_use]
    pub fn failures_after(&self, sequence: u64) -> Vec<Failure> {
        todo!()
    }

    /// Stops accepting connections, lets sessions finish for [`Builder::drain_timeout`], then terminates them. When it
    /// returns, no thread, socket or file of this forwarder is left. A further call returns when the first one does.
    ///
    /// # Errors
    /// [`ErrorKind::System`] if the forwarder had failed; [`ErrorKind::Forked`].
    pub async fn stop(&self) -> Result<(), Error> {
        todo!()
    }

    /// As [`stop`](Self::stop), and blocks the thread meanwhile.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn stop_blocking(&self) -> Result<(), Error> {
        todo!()
    }

    /// Ends sessions that [`stop`](Self::stop) waits for. Does not wait.
    pub fn terminate(&self) {
        todo!()
    }
}

/// The settings of a [`Forwarder`]. Mistakes are reported by [`start`](Self::start), all together.
#[derive(Debug)]
#[must_use]
pub struct Builder {}

impl Builder {
    /// A connection URI, `postgresql://role:secret@host:port/database`. It names the server, unless
    /// [`target`](Self::target) or [`cluster`](Self::cluster) does, and the rest is for [`Forwarder::dsn`]. Several hosts
    /// are tried in turn.
    pub fn url(self, url: impl Into<String>) -> Self {
        todo!()
    }

    /// The server, `host:port`. Several, separated by commas, are tried in turn.
    pub fn target(self, host_and_port: impl Into<String>) -> Self {
        todo!()
    }

    /// The leader of a cluster, which the manifest at `_teesql-leader.<domain>` names, signed by `signer`.
    pub fn cluster(self, domain: impl Into<String>, signer: ManifestSigner) -> Self {
        todo!()
    }

    /// The client certificate. [`Identity::guest_agent`] if it is not set.
    pub fn identity(self, identity: Identity) -> Self {
        todo!()
    }

    /// What servers have to prove. It must say which application the server is.
    pub fn policy(self, policy: Policy) -> Self {
        todo!()
    }

    /// A further decision about servers that are genuine, bound to their key and allowed by the policy: it can only
    /// refuse. It is asked for each connection.
    pub fn verifier(self, verifier: impl Verifier) -> Self {
        todo!()
    }

    /// Has `verifier` decide whether quotes are genuine, instead of verifying them by Intel's collateral (DCAP). The
    /// binding of the quote to the server's key, the event log and the policy are checked all the same, with the TCB status
    /// that the verifier reports. Its acceptance holds for up to 10 minutes.
    ///
    /// A verifier that accepts everything makes the connection open to man-in-the-middle attacks.
    pub fn dangerous_verifier_instead_of_dcap(self, verifier: impl Verifier) -> Self {
        todo!()
    }

    /// How long the verifier may take for one decision; 10 s if it is not set. The connection is then refused.
    pub fn verifier_timeout(self, timeout: Duration) -> Self {
        todo!()
    }

    /// The limit for each connection attempt, and again for the TLS handshake.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        todo!()
    }

    /// The limit for the first client certificate.
    pub fn start_timeout(self, timeout: Duration) -> Self {
        todo!()
    }

    /// How long [`Forwarder::stop`] lets sessions finish; 2 s if it is not set.
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        todo!()
    }

    /// Any setting of `teesql-forward`, by its name in the configuration file: `("pccs", "phala")`. An unknown name is an
    /// error of [`start`](Self::start). `log`, `log_format` and `admin_listen` have no effect here. With `shards` the
    /// forwarder has that many threads of its own for connections, instead of the shared one.
    pub fn setting(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        todo!()
    }

    /// Starts the forwarder, and returns when drivers can connect. It listens on a free port of 127.0.0.1, unless the
    /// setting `forward_listen` says otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`]; [`ErrorKind::Identity`] without a client certificate; [`ErrorKind::System`].
    pub async fn start(self) -> Result<Forwarder, Error> {
        todo!()
    }

    /// As [`start`](Self::start), and blocks the thread meanwhile.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_blocking(self) -> Result<Forwarder, Error> {
        todo!()
    }
}

/// A connection that was refused, or a session that was ended by an error.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// Grows by one with each failure of a forwarder, from 1.
    pub sequence: u64,
    /// The reason code (docs/reference/reason-codes.md).
    pub code: &'static str,
    /// The driver's error, without its code.
    pub message: String,
    /// The SQLSTATE that the driver receives, if it receives an error.
    pub sqlstate: Option<String>,
    /// Whether a session had been established.
    pub in_session: bool,
    /// The address of the driver's socket, unless it is a Unix socket.
    pub client: Option<SocketAddr>,
    /// When it happened.
    pub at: SystemTime,
}

impl Failure {
    /// The failure as an error, of the kind that its code belongs to.
    #[must_use]
    pub fn to_error(&self) -> Error {
        todo!()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Identity
// ---------------------------------------------------------------------------------------------------------------------

/// The certificate that a client presents to servers. Its private key is overwritten in memory when it is dropped, and no
/// error or `Debug` shows it.
#[derive(Clone)]
pub struct Identity {}

impl Identity {
    /// From dstack's guest agent of this machine, renewed in time.
    #[must_use]
    pub fn guest_agent() -> Self {
        todo!()
    }

    /// From the guest agent at this address: a path, or `http://host:port`.
    #[must_use]
    pub fn guest_agent_at(address: impl Into<String>) -> Self {
        todo!()
    }

    /// From memory: the chain, leaf first, and the leaf's key, in PEM.
    #[must_use]
    pub fn pem(chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        todo!()
    }

    /// From PEM files, read again when they change.
    #[must_use]
    pub fn pem_files(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        todo!()
    }

    /// None: only the server is attested. The sidecar must accept clients that are not attested.
    #[must_use]
    pub fn none() -> Self {
        todo!()
    }
}

/// Requests a client certificate from the guest agent, at `address` or at dstack's standard addresses: chain and key in
/// PEM.
///
/// # Errors
/// [`ErrorKind::Identity`].
pub async fn request_client_certificate(
    address: Option<&str>,
    timeout: Duration,
) -> Result<ClientCertificate, Error> {
    todo!()
}

/// A client certificate with its key.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// The chain, leaf first, in PEM.
    pub chain_pem: String,
    /// The private key in PEM. A secret.
    pub key_pem: String,
}

// ---------------------------------------------------------------------------------------------------------------------
// Policy
// ---------------------------------------------------------------------------------------------------------------------

/// What a server has to prove. Each method allows one more value; what is not named is not compared.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Policy {}

impl Policy {
    /// Any genuine TD whose platform is up to date.
    pub fn new() -> Self {
        todo!()
    }

    /// The settings of the policy in the environment: `TEESQL_ALLOWED_…`, `TEESQL_POLICY_FILE`, `TEESQL_PCCS` and so on.
    pub fn from_env() -> Self {
        todo!()
    }

    /// A policy file (docs/reference/policy-file.md). It replaces the values below.
    pub fn file(self, path: impl Into<PathBuf>) -> Self {
        todo!()
    }

    /// An allowed MRTD: 96 hex digits.
    pub fn mrtd(self, hex: impl Into<String>) -> Self {
        todo!()
    }

    /// An allowed value of RTMR `index`, 0 to 3: 96 hex digits.
    pub fn rtmr(self, index: u8, hex: impl Into<String>) -> Self {
        todo!()
    }

    /// An allowed app id: 40 hex digits.
    pub fn app_id(self, hex: impl Into<String>) -> Self {
        todo!()
    }

    /// An allowed compose hash: 64 hex digits.
    pub fn compose_hash(self, hex: impl Into<String>) -> Self {
        todo!()
    }

    /// An allowed instance id: 40 hex digits.
    pub fn instance_id(self, hex: impl Into<String>) -> Self {
        todo!()
    }

    /// An allowed OS image hash: 64 hex digits.
    pub fn os_image_hash(self, hex: impl Into<String>) -> Self {
        todo!()
    }

    /// A TCB status that is accepted besides `UpToDate`.
    pub fn accept_tcb_status(self, status: impl Into<String>) -> Self {
        todo!()
    }

    /// Accepts TDs in debug mode, whose memory the host can read.
    pub fn allow_debug_td(self) -> Self {
        todo!()
    }

    /// Accepts a policy that does not say which application the server is: any TD can then receive the secrets.
    pub fn allow_any_server(self) -> Self {
        todo!()
    }

    /// Accepts servers without any evidence, such as a simulator. The connection is open to man-in-the-middle attacks.
    pub fn allow_simulator(self) -> Self {
        todo!()
    }

    /// Any setting of the group "Attestation", by its name in the configuration file.
    pub fn setting(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        todo!()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Verifier
// ---------------------------------------------------------------------------------------------------------------------

/// A future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An application's own decision about a server, after the quote was found to belong to the key of its certificate.
///
/// It runs on a thread of its own, so that it may take long but should not block: [`verifier_fn`] makes one of a function
/// that blocks. If it panics, or has not answered within [`Builder::verifier_timeout`], the connection is refused with the
/// code `verifier_failed` or `verifier_timeout`.
pub trait Verifier: Send + Sync + 'static {
    /// Accepts or refuses a server.
    ///
    /// # Errors
    /// [`Refusal`].
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>>;
}

impl<V: Verifier + ?Sized> Verifier for Arc<V> {
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        (**self).verify(evidence)
    }
}

/// A verifier that calls a blocking function, on one of a few threads for that. A function that never returns keeps its
/// thread; when 16 of them do, all further connections are refused with the code `overloaded`.
pub fn verifier_fn<F>(decide: F) -> impl Verifier
where
    F: Fn(&Evidence) -> Result<Acceptance, Refusal> + Send + Sync + 'static,
{
    struct Todo<F>(F);
    impl<F: Send + Sync + 'static> Verifier for Todo<F> {
        fn verify<'a>(&'a self, _: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
            todo!()
        }
    }
    Todo(decide)
}

/// What a server presents: certificates, and a quote that is bound to the key of the first.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Evidence {
    /// The TDX quote.
    pub quote: Vec<u8>,
    /// The certificates in DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// What the quote and its event log say. Of a verifier instead of DCAP they are not verified yet, and there is no TCB
    /// status.
    pub claims: Claims,
}

/// A verifier's consent.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Acceptance {
    /// The TCB status that a verifier instead of DCAP found, which the policy then accepts or not; `UpToDate` if it is not
    /// set. Other verifiers leave it out.
    pub tcb_status: Option<String>,
}

impl Acceptance {
    /// Consent with a TCB status, in Intel's spelling.
    #[must_use]
    pub fn with_tcb_status(status: impl Into<String>) -> Self {
        todo!()
    }
}

/// Why a verifier does not accept a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The server is refused, with the code `verifier_refused`. The text reaches the driver and the log, with control
    /// characters escaped and cut to 200 characters.
    Refused(String),
    /// There is no decision, because the verifier failed: `verifier_failed`. The text is treated alike.
    Failed(String),
}

// ---------------------------------------------------------------------------------------------------------------------
// Verification without a connection
// ---------------------------------------------------------------------------------------------------------------------

/// What a TDX quote, and an event log if there is one, say. All values are lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claims {
    /// MRTD.
    pub mrtd: String,
    /// RTMR0 to RTMR3.
    pub rtmr: [String; 4],
    /// The report data.
    pub report_data: String,
    /// Whether the TD is in debug mode.
    pub is_debug: bool,
    /// The TCB status, in Intel's spelling; `None` if the quote's signatures were not verified.
    pub tcb_status: Option<String>,
    /// Intel's advisories that the platform is subject to.
    pub advisories: Vec<String>,
    /// The app id, if the event log proves one. The same holds for all that follow.
    pub app_id: Option<String>,
    /// The compose hash.
    pub compose_hash: Option<String>,
    /// The instance id.
    pub instance_id: Option<String>,
    /// The OS image hash.
    pub os_image_hash: Option<String>,
}

/// The result of a verification that found nothing to refuse.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verified {
    /// What is proved.
    pub claims: Claims,
    /// The quote.
    pub quote: Vec<u8>,
    /// The certificates in DER, leaf first. Empty for a bare quote, which proves nothing about who sent it.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of the leaf certificate in hex; empty for a bare quote.
    pub fingerprint: String,
    /// The last moment at which the result holds.
    pub valid_until: SystemTime,
}

/// Verifies a bare quote: Intel's signatures, the TCB, and of `policy` what a quote can show (MRTD and RTMRs). Who sent it
/// remains open.
///
/// # Errors
/// [`ErrorKind::Refused`], [`ErrorKind::Unavailable`] without collateral, [`ErrorKind::Configuration`].
pub async fn verify(quote: &[u8], policy: &Policy) -> Result<Verified, Error> {
    todo!()
}

/// As [`verify`], and blocks the thread meanwhile.
///
/// # Errors
/// As [`verify`].
pub fn verify_blocking(quote: &[u8], policy: &Policy) -> Result<Verified, Error> {
    todo!()
}

/// Verifies a certificate chain, leaf first, DER or PEM: the binding, and all that [`verify`] and `policy` require.
///
/// # Errors
/// As [`verify`].
pub async fn verify_certificate(chain: &[Vec<u8>], policy: &Policy) -> Result<Verified, Error> {
    todo!()
}

/// Connects to a server, verifies it as a forwarder does, and closes the connection without a login.
///
/// # Errors
/// As [`verify`]; [`ErrorKind::Network`], [`ErrorKind::Timeout`].
pub async fn verify_server(
    host: &str,
    port: u16,
    policy: &Policy,
    options: &ServerOptions,
) -> Result<Verified, Error> {
    todo!()
}

/// As [`verify_server`], and blocks the thread meanwhile.
///
/// # Errors
/// As [`verify_server`].
pub fn verify_server_blocking(
    host: &str,
    port: u16,
    policy: &Policy,
    options: &ServerOptions,
) -> Result<Verified, Error> {
    todo!()
}

/// How [`verify_server`] connects.
#[derive(Clone)]
#[must_use]
pub struct ServerOptions {}

impl Default for ServerOptions {
    fn default() -> Self {
        todo!()
    }
}

impl ServerOptions {
    /// The limit from name resolution to the end of the TLS handshake; 5 s if it is not set.
    pub fn timeout(self, timeout: Duration) -> Self {
        todo!()
    }

    /// The certificate to present if the server requests one; none if it is not set.
    pub fn identity(self, identity: Identity) -> Self {
        todo!()
    }

    /// As [`Builder::verifier`].
    pub fn verifier(self, verifier: impl Verifier) -> Self {
        todo!()
    }

    /// As [`Builder::dangerous_verifier_instead_of_dcap`].
    pub fn dangerous_verifier_instead_of_dcap(self, verifier: impl Verifier) -> Self {
        todo!()
    }

    /// As [`Builder::verifier_timeout`].
    pub fn verifier_timeout(self, timeout: Duration) -> Self {
        todo!()
    }
}

/// The TDX quote in a certificate in DER; `None` if there is none. Nothing is verified.
#[must_use]
pub fn extract_tdx_quote(der: &[u8]) -> Option<Vec<u8>> {
    todo!()
}

/// What a quote says, without verifying it.
///
/// # Errors
/// [`ErrorKind::Refused`] if it is not a TDX quote.
pub fn read_quote(quote: &[u8]) -> Result<Claims, Error> {
    todo!()
}

/// `SHA-512("ratls-cert:" || SubjectPublicKeyInfo)`: the report data of a quote that is bound to this key.
#[must_use]
pub fn expected_report_data(spki_der: &[u8]) -> [u8; 64] {
    todo!()
}

// ---------------------------------------------------------------------------------------------------------------------
// Leader manifest
// ---------------------------------------------------------------------------------------------------------------------

/// The address of the key that signs a cluster's leader manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestSigner([u8; 20]);

impl From<[u8; 20]> for ManifestSigner {
    fn from(address: [u8; 20]) -> Self {
        Self(address)
    }
}

impl std::str::FromStr for ManifestSigner {
    type Err = Error;

    /// `0x` and 40 hex digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        todo!()
    }
}

/// A leader manifest whose signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// The cluster's address, `0x…`.
    pub cluster: String,
    /// The leading instance.
    pub leader_instance: String,
    /// Its URL.
    pub leader_url: String,
    /// The host to connect to.
    pub host: String,
    /// The port to connect to.
    pub port: u16,
    /// Grows with each change of leader.
    pub epoch: u64,
    /// The first Unix second at which it is invalid.
    pub valid_until: u64,
    /// The text that the signature is over.
    pub canonical_body: String,
}

/// Queries `_teesql-leader.<domain>`, and returns the valid manifest with the highest epoch.
///
/// # Errors
/// [`ErrorKind::Manifest`]; [`ErrorKind::Network`] if the name server does not answer; [`ErrorKind::Timeout`].
pub async fn resolve_leader(
    domain: &str,
    signer: ManifestSigner,
    options: &LeaderOptions,
) -> Result<Manifest, Error> {
    todo!()
}

/// As [`resolve_leader`], and blocks the thread meanwhile.
///
/// # Errors
/// As [`resolve_leader`].
pub fn resolve_leader_blocking(
    domain: &str,
    signer: ManifestSigner,
    options: &LeaderOptions,
) -> Result<Manifest, Error> {
    todo!()
}

/// The TXT records at `_teesql-leader.<domain>`, unverified.
///
/// # Errors
/// As [`resolve_leader`].
pub async fn query_manifest_records(
    domain: &str,
    options: &LeaderOptions,
) -> Result<Vec<String>, Error> {
    todo!()
}

/// Verifies the text of a manifest. `now` is in Unix seconds, by default the present.
///
/// # Errors
/// [`ErrorKind::Manifest`].
pub fn parse_manifest(
    text: &str,
    signer: ManifestSigner,
    now: Option<u64>,
) -> Result<Manifest, Error> {
    todo!()
}

/// The host and port that a leader URL leads to, through a dstack gateway or not.
///
/// # Errors
/// [`ErrorKind::Manifest`].
pub fn server_of_leader_url(url: &str) -> Result<(String, u16), Error> {
    todo!()
}

/// How a manifest is queried.
#[derive(Clone, Debug)]
#[must_use]
pub struct LeaderOptions {}

impl Default for LeaderOptions {
    /// This machine's name servers, 5 s, any cluster of the signer.
    fn default() -> Self {
        todo!()
    }
}

impl LeaderOptions {
    /// The name server to ask.
    pub fn dns_server(self, address: SocketAddr) -> Self {
        todo!()
    }

    /// The limit for all queries.
    pub fn timeout(self, timeout: Duration) -> Self {
        todo!()
    }

    /// The cluster's address, `0x…`, that the manifest must name.
    pub fn cluster(self, address: impl Into<String>) -> Self {
        todo!()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------------------

/// An error of this crate. Its text contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {}

impl Error {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        todo!()
    }

    /// The reason code, one of a closed list (docs/reference/reason-codes.md): `mrtd_not_allowed`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        todo!()
    }

    /// For [`ErrorKind::Configuration`], each mistake; otherwise the one text.
    #[must_use]
    pub fn messages(&self) -> &[String] {
        todo!()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}

impl std::error::Error for Error {}

/// Kinds of [`Error`]. A language's exceptions are made from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, a DSN or an argument is wrong.
    Configuration,
    /// No client certificate: no guest agent, or it refuses, or PEM cannot be used.
    Identity,
    /// The server is refused: its evidence, the policy, or a verifier's decision.
    Refused,
    /// The leader manifest is missing or refused.
    Manifest,
    /// Something that is needed for a verdict is unavailable: collateral, Trust Authority, a verifier that failed.
    Unavailable,
    /// A name cannot be resolved, a server cannot be reached, or TLS failed.
    Network,
    /// A deadline passed.
    Timeout,
    /// A limit is reached: connections, lookups, verifications.
    Overloaded,
    /// The process has forked since the forwarder was started.
    Forked,
    /// The forwarder was stopped.
    Stopped,
    /// The operating system, or a bug.
    System,
}

/// Every code that [`Error::code`] and [`Failure::code`] can have.
#[must_use]
pub fn reason_codes() -> Vec<&'static str> {
    todo!()
}
