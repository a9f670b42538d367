//! The sidecar's connections to Postgres: the dial, the login with a password that the client
//! never sees, and CancelRequests.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use wire::backend::{
    AuthMethods, AwaitKeys, AwaitReady, BackendError, BackendLogin, BackendStep, ReadyStep,
};
use wire::scram;
use wire::startup::{ProtocolVersion, Startup};

use crate::auth::credential::Credential;
use crate::cluster::state::ClusterState;
use crate::io::buffer::{Buffer, Size};
use crate::io::offload::{OffloadPool, PendingJobs};
use crate::io::stream::{PgAddress, Stream};
use crate::postgres::server::PostgresServer;
use crate::postgres::session_address::{self, SessionAddress};
use crate::postgres::session_settings::SessionSettings;
use crate::proxy::{CANCEL_TIMEOUT, shut_down_after};
use crate::session::control::ConnectionControl;
use crate::session::tls_stream::TlsStream;
use crate::tasks::role_repair::RepairTrigger;
use crate::tasks::upstream_version::UpstreamVersion;
use crate::telemetry::close_reason::CloseReason;
use crate::tls::session;

/// Length 8, and SSLRequest's code 80877103.
const SSL_REQUEST_PACKET: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Where the process number and the key begin in a CancelRequest, after its length and code. They are the content of
/// BackendKeyData.
const CANCEL_KEY_OFFSET: usize = 8;

/// SCRAM keys cached per shard. The salt of a role changes only with its password, so three
/// keys are in use at a time.
const MAX_CACHED_KEYS: usize = 16;

/// Logs in to Postgres. Every shard has one.
pub(crate) struct UpstreamLogin {
    pub(crate) own: Arc<SessionAddress>,
    pub(crate) upstream_version: Arc<UpstreamVersion>,
    pub(crate) session_settings: Arc<SessionSettings>,
    pub(crate) repair_trigger: Arc<RepairTrigger>,
    pub(crate) worker: OffloadPool,
    pub(crate) jobs: PendingJobs,
    pub(crate) keys: RefCell<Vec<CachedKeys>>,
    pub(crate) random: &'static dyn rustls::crypto::SecureRandom,
}

/// Keys that were derived from a password, with everything they depend on.
pub(crate) struct CachedKeys {
    credential: u64,
    salt: Vec<u8>,
    iterations: u32,
    keys: Arc<scram::Keys>,
}

/// What a login to Postgres consists of.
#[derive(Clone, Copy)]
pub(crate) struct LoginRequest<'a> {
    pub(crate) startup: &'a Startup,
    pub(crate) version: ProtocolVersion,
    pub(crate) credential: &'a Arc<Credential>,
}

/// A Postgres that has accepted the password. Its AuthenticationOk has not been forwarded yet.
pub(crate) struct AuthenticatedUpstream {
    /// The own one, whose version and roles this sidecar looks after, and not that of another member.
    is_own: bool,
    stream: Stream,
    received: Buffer,
    ready: AwaitReady,
}

impl AuthenticatedUpstream {
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.stream.raw_fd()
    }
}

/// A Postgres session that is ready for queries.
pub(crate) struct UpstreamSession {
    pub(crate) stream: Stream,
    /// Bytes that Postgres sent after ReadyForQuery.
    pub(crate) received: Buffer,
}

impl UpstreamLogin {
    /// Dials the own Postgres until `deadline`. A socket that was chosen may have gone since, e.g. because Postgres was
    /// restarted without it: the configured address is dialed then.
    pub(crate) async fn dial_own(
        &self,
        deadline: Instant,
        control: &ConnectionControl,
    ) -> Result<(Stream, Arc<PostgresServer>), CloseReason> {
        let server = self.own.current();
        match self.dial_server(&server, deadline, control).await {
            Err(_) if self.own.is_chosen_socket(&server) && Instant::now() < deadline => {
                let server = Arc::clone(self.own.configured());
                let stream = self.dial_server(&server, deadline, control).await?;
                Ok((stream, server))
            }
            dialed => Ok((dialed?, server)),
        }
    }

    /// Dials a Postgres, the own one or that of another member of the cluster, and checks the user of the listener on a
    /// Unix socket.
    pub(crate) async fn dial_server(
        &self,
        server: &PostgresServer,
        deadline: Instant,
        control: &ConnectionControl,
    ) -> Result<Stream, CloseReason> {
        let address = &server.address;
        let stream = Stream::dial(address, deadline).await.map_err(|error| {
            if self.own.is_own(server) {
                self.upstream_version.invalidate();
            }
            or_timeout(control, CloseReason::UpstreamUnreachable(error))
        })?;
        if let PgAddress::Unix(_) = address {
            server.check_listener(stream.listener_uid())?;
        }
        Ok(stream)
    }

    /// The Postgres of another member of the cluster, at this address on loopback. It has to prove itself as the own one.
    pub(crate) fn other_server(&self, address: SocketAddr) -> PostgresServer {
        PostgresServer {
            address: PgAddress::Tcp(address),
            look_for_socket: false,
            ..PostgresServer::clone(self.own.configured())
        }
    }

    /// Logs in with the client's startup parameters and the role's own password. No byte goes to the client.
    pub(crate) async fn authenticate(
        &self,
        mut stream: Stream,
        server: &PostgresServer,
        login: &LoginRequest<'_>,
        control: &ConnectionControl,
    ) -> Result<AuthenticatedUpstream, CloseReason> {
        let mut received = Buffer::take(Size::Small);
        let is_own = self.own.is_own(server);
        let ready = self
            .exchange(&mut stream, &mut received, server.methods(), login)
            .await
            .map_err(|error| {
                if is_own {
                    self.upstream_version.invalidate();
                    self.request_repair(&error);
                    self.leave_socket(server, &error);
                }
                or_timeout(control, error)
            })?;
        Ok(AuthenticatedUpstream {
            is_own,
            stream,
            received,
            ready,
        })
    }

    /// Forwards the messages of Postgres to the client, from AuthenticationOk to ReadyForQuery. `on_key` gets the content
    /// of BackendKeyData.
    pub(crate) async fn forward_until_ready<E: session::TlsSide>(
        &self,
        upstream: AuthenticatedUpstream,
        client: &mut TlsStream<E>,
        control: &ConnectionControl,
        on_key: impl FnMut(&[u8]),
    ) -> Result<(UpstreamSession, Option<String>), CloseReason> {
        let AuthenticatedUpstream {
            is_own,
            mut stream,
            mut received,
            ready,
        } = upstream;
        let version =
            forward_until_ready(&mut stream, &mut received, ready, client, control, on_key)
                .await
                .inspect_err(|error| {
                    if is_own {
                        self.request_repair(error);
                    }
                })?;
        Ok((UpstreamSession { stream, received }, version))
    }

    /// Requests a comparison of the roles if Postgres refused a login. The client's secret was right, so
    /// the role's password, attributes or privileges may have been changed.
    fn request_repair(&self, error: &CloseReason) {
        let refused = matches!(
            error,
            CloseReason::UpstreamRefused(_)
                | CloseReason::UpstreamLoginFailed(BackendError::Refused { .. })
                | CloseReason::UpstreamLoginFailed(BackendError::PasswordMissing)
        );
        if refused {
            self.repair_trigger.request();
        }
    }

    /// Opens new sessions on the configured address if the socket that was chosen no longer lets a role in:
    /// `pg_hba.conf` was changed. The socket is tried again when Postgres has been restarted.
    fn leave_socket(&self, server: &PostgresServer, error: &CloseReason) {
        if let CloseReason::UpstreamLoginFailed(error) = error
            && self.own.is_chosen_socket(server)
            && session_address::refuses_role(error)
        {
            self.own.use_configured();
            tracing::warn!(
                socket = %server.address,
                postgres = %self.own.configured().address,
                %error,
                "Postgres' Unix socket no longer lets a role in: new sessions use TCP"
            );
        }
    }

    async fn exchange(
        &self,
        stream: &mut Stream,
        incoming: &mut Buffer,
        methods: AuthMethods,
        login: &LoginRequest<'_>,
    ) -> Result<AwaitReady, CloseReason> {
        let LoginRequest {
            startup,
            version,
            credential,
        } = *login;
        let mut nonce = [0_u8; 18];
        self.random
            .fill(&mut nonce)
            .map_err(|_| BackendError::NoRandomness)?;
        let mut out = Vec::new();
        let mut backend =
            BackendLogin::start(startup, version, nonce, &mut out).with_methods(methods);
        loop {
            if !out.is_empty() {
                let message = std::mem::take(&mut out);
                stream
                    .write_secret(message)
                    .await
                    .map_err(CloseReason::UpstreamIo)?;
            }
            match backend.advance(incoming.filled(), &credential.password, &mut out) {
                BackendStep::Read { next, consumed } => {
                    incoming.consume(consumed);
                    backend = next;
                    if out.is_empty() {
                        read_more(stream, incoming).await?;
                    }
                }
                BackendStep::DeriveKeys {
                    salt,
                    iterations,
                    consumed,
                    next,
                } => {
                    incoming.consume(consumed);
                    backend = self
                        .answer_challenge(next, credential, salt, iterations, &mut out)
                        .await?;
                }
                BackendStep::Authenticated { consumed, next } => {
                    incoming.consume(consumed);
                    return Ok(next);
                }
                BackendStep::Refuse(error) => return Err(error.into()),
            }
        }
    }

    /// Answers the SCRAM challenge with cached keys, or with keys derived on the worker thread:
    /// 4,096 rounds of HMAC take about a millisecond.
    async fn answer_challenge(
        &self,
        next: AwaitKeys,
        credential: &Arc<Credential>,
        salt: Vec<u8>,
        iterations: u32,
        out: &mut Vec<u8>,
    ) -> Result<BackendLogin, CloseReason> {
        let cached = self
            .keys
            .borrow()
            .iter()
            .find(|cached| {
                cached.credential == credential.id
                    && cached.iterations == iterations
                    && cached.salt == salt
            })
            .map(|cached| Arc::clone(&cached.keys));
        if let Some(keys) = cached {
            return Ok(next.resume(&keys, out));
        }
        let (password, salt_copy) = (Arc::clone(credential), salt.clone());
        let keys = self
            .jobs
            .offload(&self.worker, move || {
                Arc::new(scram::Keys::derive(
                    &password.password,
                    &salt_copy,
                    iterations,
                ))
            })
            .await
            .map_err(|_| BackendError::Overloaded)?;
        let backend = next.resume(&keys, out);
        let mut cache = self.keys.borrow_mut();
        if cache.len() >= MAX_CACHED_KEYS {
            cache.remove(0);
        }
        cache.push(CachedKeys {
            credential: credential.id,
            salt,
            iterations,
            keys,
        });
        Ok(backend)
    }
}

/// Forwards the messages of Postgres to the client until Postgres is ready for queries.
/// Returns its `server_version`, if it reported one.
async fn forward_until_ready<E: session::TlsSide>(
    stream: &mut Stream,
    incoming: &mut Buffer,
    mut ready: AwaitReady,
    client: &mut TlsStream<E>,
    control: &ConnectionControl,
    mut on_key: impl FnMut(&[u8]),
) -> Result<Option<String>, CloseReason> {
    loop {
        let (forward_len, outcome) = match ready.advance_with(incoming.filled(), &mut on_key) {
            ReadyStep::Forward { forward_len, next } => (forward_len, Ok(next)),
            ReadyStep::Ready {
                forward_len,
                server_version,
            } => (forward_len, Err(Ok(server_version))),
            ReadyStep::Failed {
                forward_len,
                sqlstate,
            } => (
                forward_len,
                Err(Err(CloseReason::UpstreamRefused(sqlstate))),
            ),
            ReadyStep::Refuse(error) => (0, Err(Err(error.into()))),
        };
        if let Some(message) = incoming.filled().get(..forward_len)
            && forward_len > 0
        {
            control.count_sent(forward_len);
            client
                .send(message)
                .await
                .map_err(|error| error.into_close_reason(control))?;
            incoming.consume(forward_len);
        }
        match outcome {
            Ok(next) => ready = next,
            Err(outcome) => return outcome,
        }
        read_more(stream, incoming)
            .await
            .map_err(|error| or_timeout(control, error))?;
    }
}

/// The reason why waiting for Postgres failed. If the login deadline passed, Postgres is the cause: the
/// client has sent everything.
fn or_timeout(control: &ConnectionControl, otherwise: CloseReason) -> CloseReason {
    match control.or_terminated(otherwise) {
        CloseReason::LoginTimeout => CloseReason::UpstreamTimeout,
        reason => reason,
    }
}

async fn read_more(stream: &mut Stream, incoming: &mut Buffer) -> Result<(), CloseReason> {
    let buffer = std::mem::replace(incoming, Buffer::none());
    let (result, filled) = stream.read(buffer.make_room()).await;
    *incoming = filled;
    match result {
        Ok(0) => Err(BackendError::EarlyEof.into()),
        Ok(_) => Ok(()),
        Err(error) => Err(CloseReason::UpstreamIo(error)),
    }
}

/// Forwards a CancelRequest to Postgres. Any shard can do this, because the key in it was issued by Postgres: by the
/// own one, unless the session was carried to the leader of the cluster.
pub(crate) async fn cancel(
    upstream_login: &UpstreamLogin,
    cluster: Option<&ClusterState>,
    packet: Vec<u8>,
    control: &ConnectionControl,
) -> CloseReason {
    let server = cluster.and_then(|cluster| {
        let key = packet.get(CANCEL_KEY_OFFSET..)?;
        let leader = cluster.carried_keys.leader_of(key)?;
        Some(upstream_login.other_server(cluster.config.postgres_of(leader)?))
    });
    let mut stream = match open_for_cancel(upstream_login, server.as_ref(), control).await {
        Ok(stream) => stream,
        Err(reason) => return reason,
    };
    let _fd_guard = control.register_upstream_fd(stream.raw_fd());
    if let Err(error) = stream.write_secret(packet).await {
        return control.or_terminated(CloseReason::UpstreamIo(error));
    }
    // Postgres closes the connection after it has sent the signal. Clients wait for that, so
    // that the cancellation does not hit their next query.
    let _ = stream.read(Buffer::take(Size::Small)).await;
    control.or_terminated(CloseReason::Cancelled)
}

/// Connects to Postgres and waits until it answers, for at most [`CANCEL_TIMEOUT`]. The kernel accepts connections and
/// bytes for a Postgres that is frozen, which would read a CancelRequest when it continues. So it is asked for encryption
/// first, and gets the CancelRequest only if it answers in time.
async fn open_for_cancel(
    upstream_login: &UpstreamLogin,
    server: Option<&PostgresServer>,
    control: &ConnectionControl,
) -> Result<Stream, CloseReason> {
    let deadline = Instant::now() + CANCEL_TIMEOUT;
    let mut stream = dial_for_cancel(upstream_login, server, deadline, control).await?;
    match await_answer(&mut stream, deadline, control).await? {
        b'N' => Ok(stream),
        b'S' => {
            // Postgres expects TLS here, which is not needed on this machine. A new connection has no answer before the
            // CancelRequest, but Postgres accepts connections in their order: one that is opened later answers for it.
            drop(stream);
            let stream = dial_for_cancel(upstream_login, server, deadline, control).await?;
            let mut later = dial_for_cancel(upstream_login, server, deadline, control).await?;
            await_answer(&mut later, deadline, control).await?;
            Ok(stream)
        }
        _ => Err(BackendError::EarlyEof.into()),
    }
}

/// Dials this Postgres, or the own one, until `deadline`, or the login deadline if that is earlier.
async fn dial_for_cancel(
    upstream_login: &UpstreamLogin,
    server: Option<&PostgresServer>,
    deadline: Instant,
    control: &ConnectionControl,
) -> Result<Stream, CloseReason> {
    let until = deadline.min(control.login_deadline());
    let stream = match server {
        Some(server) => upstream_login.dial_server(server, until, control).await,
        None => upstream_login
            .dial_own(until, control)
            .await
            .map(|(stream, _)| stream),
    };
    stream.map_err(|error| match Instant::now() < deadline {
        true => error,
        false => control.or_terminated(CloseReason::CancelExpired),
    })
}

/// Asks Postgres for encryption, and waits for its answer until `deadline`.
async fn await_answer(
    stream: &mut Stream,
    deadline: Instant,
    control: &ConnectionControl,
) -> Result<u8, CloseReason> {
    let fd = stream.raw_fd();
    let _fd_guard = control.register_upstream_fd(fd);
    let left = deadline.saturating_duration_since(Instant::now());
    let (answer, in_time) = shut_down_after(left, fd, request_encryption(stream)).await;
    match in_time {
        true => answer.map_err(|error| control.or_terminated(error)),
        false => Err(control.or_terminated(CloseReason::CancelExpired)),
    }
}

/// Sends an SSLRequest and reads the answer of one byte.
async fn request_encryption(stream: &mut Stream) -> Result<u8, CloseReason> {
    let request = stream.write_all(SSL_REQUEST_PACKET.to_vec()).await;
    request.map_err(CloseReason::UpstreamIo)?;
    let mut incoming = Buffer::take(Size::Small);
    read_more(stream, &mut incoming).await?;
    let answer = incoming.filled().first().copied();
    answer.ok_or_else(|| BackendError::EarlyEof.into())
}
