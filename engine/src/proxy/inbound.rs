//! The sidecar's connections, from the first byte of a client to the last: opening, TLS,
//! attestation, login, relay, close.
//!
//! There is one function for each step, in this order. No byte of the login is read before the
//! client is attested, and Postgres is not dialled before the client is authenticated.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use attest::Denial;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use wire::frontend::{AwaitStartup, StartupStep, negotiate};
use wire::link::LinkRefusal;
use wire::opening::{Opening, OpeningPolicy, OpeningStep};
use wire::startup::{ProtocolVersion, Startup};

use crate::attestation::gate::Attested;
use crate::auth::client_auth::ClientAuth;
use crate::auth::credential::Credential;
use crate::auth::failed_logins::{FailedLogins, PeerIdentity};
use crate::auth::grants::{EntryIsFull, NotGranted, RequestedSession};
use crate::auth::role::Role;
use crate::cluster::carried::CarriedSession;
use crate::cluster::member_names::BoundName;
use crate::cluster::state::ClusterState;
use crate::io::buffer::{Buffer, Size};
use crate::io::stream::Stream;
use crate::proxy::link::Links;
use crate::proxy::link::inbound::AcceptedLink;
use crate::proxy::link::outbound::OpenedLink;
use crate::proxy::upstream::{self, LoginRequest, UpstreamLogin, UpstreamSession};
use crate::proxy::{read_opening, reply_opening};
use crate::session::control::{ConnectionControl, FdGuard};
use crate::session::relay::{ClientSide, relay};
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::connection_limit::{ConnectionPermit, LimitReached, LoginPeer};
use crate::shard::handler::{ConnectionHandler, HandlerContext};
use crate::shard::live_config::{LiveConfig, Snapshot};
use crate::shard::message::LinkRoute;
use crate::telemetry::audit::queue::fingerprint;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::tls::session::{HandshakeSummary, Session};

mod authenticate;
mod route;

/// Serves the client connections of one shard.
pub(crate) struct InboundHandler {
    pub(crate) context: HandlerContext,
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) upstream_login: UpstreamLogin,
    pub(crate) plaintext_cancel: bool,
    /// Simulator mode: clients on this machine may log in as `postgres` without a password.
    pub(crate) trust_loopback: bool,
    pub(crate) proxy_protocol_from: Vec<ipnet::IpNet>,
    pub(crate) require_alpn: bool,
    pub(crate) client_auth: ClientAuth,
    /// Offer SCRAM-SHA-256-PLUS to clients that have TLS with this sidecar.
    pub(crate) scram_channel_binding: bool,
    /// Whether `postgres` can log in at all.
    pub(crate) superuser_logins: bool,
    pub(crate) failed_logins: FailedLogins,
    /// Links to the other members, if this sidecar belongs to a cluster.
    pub(crate) links: Option<Links>,
    /// The cluster that this sidecar belongs to, if it does.
    pub(crate) cluster: Option<Arc<ClusterState>>,
}

type Client = TlsStream<UnbufferedServerConnection>;

impl InboundHandler {
    async fn cancel(&self, packet: Vec<u8>, control: &ConnectionControl) -> CloseReason {
        upstream::cancel(
            &self.upstream_login,
            self.cluster.as_deref(),
            packet,
            control,
        )
        .await
    }

    /// Whether a PROXY header from `peer` is accepted.
    fn accepts_proxy_header(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let mut networks = self.proxy_protocol_from.iter();
        networks.any(|network| network.contains(&peer))
    }
}

impl ConnectionHandler for InboundHandler {
    fn context(&self) -> &HandlerContext {
        &self.context
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.accepts_proxy_header(peer)
    }

    fn serve(
        &self,
        stream: Stream,
        permit: &ConnectionPermit,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> impl Future<Output = CloseReason> {
        serve(self, stream, permit, control, info)
    }

    async fn open_link(
        &self,
        local: Stream,
        route: LinkRoute,
        permit: &ConnectionPermit,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> CloseReason {
        let Some(links) = &self.links else {
            return LinkRefusal::NotReady.into();
        };
        let link = OpenedLink {
            context: &self.context,
            links,
            live: &self.live,
            permit,
            control,
            info,
            cluster: self.cluster.as_deref(),
        };
        link.serve(local, route).await
    }
}

/// Serves one accepted connection until it closes.
async fn serve(
    handler: &InboundHandler,
    stream: Stream,
    permit: &ConnectionPermit,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> CloseReason {
    let _fd_guard = control.register_client_fd(stream.raw_fd());
    // The place among the sessions of the client's policy entry. It is kept for as long as `permit` counts a session,
    // also if the login to Postgres fails: a client may take its time to read that.
    let _entry_guard = control.entry_guard();
    // Boxed, so that its memory is freed before the relay, which may idle for days.
    let establishing = Box::pin(establish(handler, stream, permit, control, info));
    let (_fd_guard, relay, _guard) = match establishing.await {
        Ok((client, session)) => {
            if !control.is_link() {
                session_started(handler, control, info);
            }
            let OpenSession { upstream, guard } = session;
            let (fd_guard, relay) = start_relay(client, upstream, control);
            (fd_guard, relay, guard)
        }
        Err(reason) => return reason,
    };
    relay.await
}

/// Records that a client has logged in.
fn session_started(
    handler: &InboundHandler,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) {
    let shard_metrics = &handler.context.shard_metrics;
    info.borrow_mut().session_started(shard_metrics);
    if let Some(audit) = &handler.context.audit {
        audit.role_granted(&info.borrow(), control.peer().as_deref());
    }
}

/// Starts the relay of a session. A separate function, so that its arguments take no space in
/// the future of the session.
fn start_relay(
    client: Client,
    session: UpstreamSession,
    control: &ConnectionControl,
) -> (FdGuard<'_>, impl Future<Output = CloseReason>) {
    let UpstreamSession { stream, received } = session;
    let fd_guard = control.register_upstream_fd(stream.raw_fd());
    control.login_done();
    let relay = relay(client, stream, received, ClientSide::Tls, control);
    (fd_guard, relay)
}

/// Handles everything from the first byte to ReadyForQuery. If it fails, the client has
/// received the error already.
async fn establish(
    handler: &InboundHandler,
    mut stream: Stream,
    permit: &ConnectionPermit,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> Result<(Client, OpenSession), CloseReason> {
    let snapshot = handler.live.read();
    let (incoming, ssl_request) = match open(handler, &mut stream, permit, control, info).await {
        Ok(Opened::Tls {
            incoming,
            ssl_request,
        }) => (incoming, ssl_request),
        Ok(Opened::Cancel(packet)) => {
            return Err(handler.cancel(packet, control).await);
        }
        Err(reason) => return Err(refuse_in_plaintext(&mut stream, reason, control).await),
    };
    let (mut client, handshake) =
        accept_tls(handler, &snapshot, stream, incoming, control, info).await?;
    if handshake.is_link {
        let link = AcceptedLink {
            context: &handler.context,
            links: handler.links.as_ref(),
            permit,
            control,
            info,
        };
        let (upstream, bound) = link.accept(&mut client, handshake).await?;
        let guard = SessionGuard::Link { _bound: bound };
        return Ok((client, OpenSession { upstream, guard }));
    }
    let attested = match attest(handler, handshake.chain, permit, control, info).await {
        Ok(attested) => attested,
        Err(reason) => return Err(refuse(&mut client, reason, control).await),
    };
    let login = LoginContext {
        handler,
        snapshot: &snapshot,
        permit,
        control,
        info,
        ssl_request,
        alpn: handshake.alpn,
    };
    match login.log_in(&mut client, &attested).await {
        Ok(Login::Session(session)) => Ok((client, session)),
        Ok(Login::Cancel(packet)) => {
            let reason = handler.cancel(packet, control).await;
            client.close().await;
            Err(reason)
        }
        Err(reason) => Err(refuse(&mut client, reason, control).await),
    }
}

enum Opened {
    /// TLS follows.
    Tls {
        /// The bytes received so far.
        incoming: Buffer,
        /// Whether the client asked for TLS with an SSLRequest.
        ssl_request: bool,
    },
    Cancel(Vec<u8>),
}

/// Reads the plaintext bytes before TLS.
async fn open(
    handler: &InboundHandler,
    stream: &mut Stream,
    permit: &ConnectionPermit,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> Result<Opened, CloseReason> {
    let peer = info.borrow().peer.address();
    let mut opening = Opening::new(OpeningPolicy {
        plaintext_cancel: handler.plaintext_cancel,
        proxy_protocol: peer.is_some_and(|peer| handler.accepts_proxy_header(peer.ip())),
    });
    let mut incoming = Buffer::take(Size::Small);
    let mut ssl_request = false;
    loop {
        match opening.advance(incoming.filled()) {
            OpeningStep::Read(next) => {
                opening = next;
                incoming = read_opening(stream, incoming, control).await?;
            }
            OpeningStep::Reply {
                byte,
                consumed,
                next,
            } => {
                opening = next;
                incoming.consume(consumed);
                ssl_request |= byte == b'S';
                reply_opening(stream, byte, control).await?;
            }
            OpeningStep::Proxied {
                source,
                consumed,
                next,
            } => {
                opening = next;
                incoming.consume(consumed);
                let mut info = info.borrow_mut();
                (info.proxied_client, info.via_proxy) = (source, true);
                if let Some(client) = source {
                    permit.set_client(client.ip());
                }
            }
            OpeningStep::Tls => {
                return Ok(Opened::Tls {
                    incoming,
                    ssl_request,
                });
            }
            OpeningStep::Cancel(request) => return Ok(Opened::Cancel(request.as_bytes().to_vec())),
            OpeningStep::Refuse(error) => return Err(error.into()),
        }
    }
}

/// Performs the TLS handshake.
async fn accept_tls(
    handler: &InboundHandler,
    snapshot: &Snapshot,
    stream: Stream,
    incoming: Buffer,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> Result<(Client, HandshakeSummary), CloseReason> {
    let connection = UnbufferedServerConnection::new(Arc::clone(&snapshot.tls))
        .map_err(|error| CloseReason::TlsHandshake(error.into()))?;
    let mut client = TlsStream::new(stream, Session::new(connection), incoming);
    let summary = match client
        .handshake(&handler.context.handshake_queue, control)
        .await
    {
        Ok(summary) => summary,
        Err(StreamError::Eof) => return Err(control.or_terminated(CloseReason::ClientGone)),
        Err(StreamError::Io(error)) => {
            return Err(control.or_terminated(CloseReason::ClientIo(error)));
        }
        Err(StreamError::Tls(error)) => {
            // The alert has been sent. Closing a socket with unread data resets the
            // connection, and the client would not see the alert.
            control.start_closing();
            client.stream.linger().await;
            return Err(CloseReason::TlsHandshake(error));
        }
    };
    let shard_metrics = &handler.context.shard_metrics;
    info.borrow_mut()
        .handshake_done(summary.version, shard_metrics);
    Ok((client, summary))
}

/// Verifies the client's attestation. Consumes its certificates, because the login that
/// follows may wait for a long time.
async fn attest(
    handler: &InboundHandler,
    chain: Option<Vec<CertificateDer<'static>>>,
    permit: &ConnectionPermit,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> Result<Attested, CloseReason> {
    let verdict = handler
        .context
        .gate
        .admit(chain.as_deref(), || control.begin_work());
    let verdict = control.race_terminated(verdict).await;
    let peer = match &verdict {
        Ok(Ok(attested)) => attested.peer().cloned(),
        Ok(Err(_)) | Err(_) => None,
    };
    if let Some(audit_log) = &handler.context.audit {
        let mut info = info.borrow_mut();
        let leaf = chain.as_ref().and_then(|chain| chain.first());
        if let (None, Some(audit), Some(leaf)) = (&peer, &mut info.audit, leaf) {
            audit.set_certificate(Some(fingerprint(leaf)));
        }
        if matches!(verdict, Ok(Ok(_))) {
            audit_log.admitted(&mut info, peer.as_deref());
        }
    }
    let login_peer = peer.as_deref().map(LoginPeer::of);
    info.borrow_mut().attested = login_peer.is_some();
    control.set_peer(peer);
    let attested = verdict.map_err(|reason| match reason {
        // The deadline passes only while collateral is fetched.
        CloseReason::LoginTimeout => CloseReason::Denied(Denial::CollateralUnavailable),
        reason => reason,
    })??;
    // Without evidence, the login decides which clients are known.
    if let Some(login_peer) = login_peer {
        let limit = permit.attested(login_peer);
        limit.map_err(|LimitReached| CloseReason::TooManyLogins)?;
    }
    Ok(attested)
}

/// A session or a link that is ready, and what lasts as long as it.
struct OpenSession {
    upstream: UpstreamSession,
    guard: SessionGuard,
}

/// What lasts as long as a session or a link.
enum SessionGuard {
    /// The own Postgres serves the session.
    None,
    /// The leader of the cluster serves the session.
    Carried { _carried: CarriedSession },
    /// The name of the member that has opened the link.
    Link { _bound: BoundName },
}

enum Login {
    Session(OpenSession),
    Cancel(Vec<u8>),
}

/// The state that the steps of a login share.
struct LoginContext<'a> {
    handler: &'a InboundHandler,
    snapshot: &'a Snapshot,
    permit: &'a ConnectionPermit,
    control: &'a ConnectionControl,
    info: &'a RefCell<ConnectionInfo>,
    /// Whether the client asked for TLS with an SSLRequest.
    ssl_request: bool,
    /// Whether ALPN negotiated a protocol.
    alpn: bool,
}

impl LoginContext<'_> {
    /// Handles everything from the first message inside TLS to ReadyForQuery. The gate's
    /// [`Attested`] proves that the client has been verified.
    async fn log_in(&self, client: &mut Client, _: &Attested) -> Result<Login, CloseReason> {
        let (handler, control) = (self.handler, self.control);
        let mut startup = match read_startup(client, control).await? {
            FirstMessage::Startup(startup) => startup,
            FirstMessage::Cancel(packet) => return Ok(Login::Cancel(packet)),
        };
        if handler.require_alpn && !self.alpn {
            return Err(CloseReason::AlpnMissing);
        }
        // Unknown names must not get into the log: a user may have typed a password instead.
        let role = Role::from_name(startup.role());
        self.info.borrow_mut().role = role;
        self.note_database(&startup);
        self.check_grants(&startup)?;
        if !handler.context.accepts_sessions() {
            return Err(CloseReason::AuditUnavailable);
        }
        // Said before the secret is asked for, as Postgres does.
        let limit = self.permit.check_sessions();
        limit.map_err(|LimitReached| CloseReason::TooManyConnections)?;
        let (credential, version) = match self.trusted_credential(role) {
            Some(credential) => (credential, self.negotiate(client, &startup).await?),
            None => match self.authenticate(client, &startup, role).await {
                Ok(authenticated) => {
                    self.forget_failures(role);
                    authenticated
                }
                Err(reason) => return Err(self.delay_failure(reason, role).await),
            },
        };
        // First, so that what an entry may not have takes no place of the others.
        let entry_permit = handler
            .context
            .gate
            .acquire_session(control.peer().as_deref())
            .map_err(|EntryIsFull| CloseReason::PeerSessionLimit)?;
        let limit = self.permit.begin_session();
        limit.map_err(|LimitReached| CloseReason::TooManyConnections)?;
        control.set_entry_permit(entry_permit);
        handler
            .upstream_login
            .session_settings
            .add_to(&mut startup, role);
        let request = LoginRequest {
            startup: &startup,
            version,
            credential: &credential,
        };
        let session = self.open_session(client, request, role).await?;
        Ok(Login::Session(session))
    }

    /// Ends the back-off of an attested client that has presented a right secret.
    fn forget_failures(&self, role: Option<Role>) {
        if let Some(peer) = self.control.peer() {
            let identity = PeerIdentity::of(&peer);
            self.handler.failed_logins.succeeded(identity, role);
        }
    }

    /// Waits before a wrong secret of an attested client is answered, according to its back-off, at most until the
    /// login deadline.
    async fn delay_failure(&self, reason: CloseReason, role: Option<Role>) -> CloseReason {
        let (CloseReason::AuthenticationFailed, Some(peer)) = (&reason, self.control.peer()) else {
            return reason;
        };
        let identity = PeerIdentity::of(&peer);
        let failed_logins = &self.handler.failed_logins;
        let wait = failed_logins.failed(identity, role, Instant::now());
        let waited = self
            .control
            .race_terminated(monoio::time::sleep(wait))
            .await;
        answer_after(waited, reason)
    }

    /// Compares the role and the database with what the client's policy entry grants, before its secret is asked for.
    fn check_grants(&self, startup: &Startup) -> Result<(), CloseReason> {
        let requested = RequestedSession::of(startup);
        if requested.role == Some(Role::Superuser) && !self.handler.superuser_logins {
            return Err(CloseReason::NotGranted(NotGranted::Role));
        }
        self.control
            .set_requested(requested)
            .map_err(CloseReason::NotGranted)
    }

    /// Keeps the name of the database for the audit log. Without a known role it is not kept: the
    /// default is the name of the role, which may be a mistyped password.
    fn note_database(&self, startup: &Startup) {
        let mut info = self.info.borrow_mut();
        if let (Some(role), Some(audit)) = (info.role, &mut info.audit) {
            let named = startup
                .parameters()
                .filter(|(name, _)| *name == b"database");
            let named = named.last().map(|(_, name)| name);
            let name = named.filter(|name| !name.is_empty());
            audit.set_database(name.unwrap_or(role.name().as_bytes()));
        }
    }

    /// The superuser's credential, if this client needs no password: in simulator mode, and
    /// only on this machine.
    fn trusted_credential(&self, role: Option<Role>) -> Option<Arc<Credential>> {
        let local = self.handler.trust_loopback && self.info.borrow().is_local();
        if !local || role != Some(Role::Superuser) {
            return None;
        }
        self.snapshot.authenticator.superuser_credential().cloned()
    }

    /// Negotiates the protocol version without requesting a password.
    async fn negotiate(
        &self,
        client: &mut Client,
        startup: &Startup,
    ) -> Result<ProtocolVersion, CloseReason> {
        let newest = self
            .handler
            .upstream_login
            .upstream_version
            .newest_or_fallback()
            .await;
        let mut message = Vec::new();
        let version = negotiate(startup, newest, &mut message);
        if !message.is_empty() {
            client
                .send(&message)
                .await
                .map_err(|error| error.into_close_reason(self.control))?;
        }
        Ok(version)
    }
}

/// The answer to a wrong secret after its delay. The login deadline, which ends a long delay, must not hide it.
fn answer_after(waited: Result<(), CloseReason>, wrong_secret: CloseReason) -> CloseReason {
    match waited {
        Ok(()) | Err(CloseReason::LoginTimeout) => wrong_secret,
        Err(terminated) => terminated,
    }
}

enum FirstMessage {
    Startup(Startup),
    Cancel(Vec<u8>),
}

async fn read_startup(
    client: &mut Client,
    control: &ConnectionControl,
) -> Result<FirstMessage, CloseReason> {
    let mut await_startup = AwaitStartup::new();
    loop {
        match await_startup.advance(client.plain.filled()) {
            StartupStep::Read(next) => await_startup = next,
            StartupStep::Startup { message, consumed } => {
                let startup = message.to_owned();
                client.plain.consume(consumed);
                return Ok(FirstMessage::Startup(startup));
            }
            StartupStep::Cancel(request) => {
                return Ok(FirstMessage::Cancel(request.as_bytes().to_vec()));
            }
            StartupStep::Refuse(error) => return Err(error.into()),
        }
        read_more(client, control).await?;
    }
}

async fn read_more(client: &mut Client, control: &ConnectionControl) -> Result<(), CloseReason> {
    client
        .read_more()
        .await
        .map_err(|error| error.into_close_reason(control))
}

/// Sends the error inside TLS, and gives the client time to read it.
async fn refuse(
    client: &mut Client,
    reason: CloseReason,
    control: &ConnectionControl,
) -> CloseReason {
    control.start_closing();
    if matches!(reason, CloseReason::TooManyUnattested) {
        return reason;
    }
    if let Some(response) = reason.login_response()
        && client.send(&response).await.is_err()
    {
        return reason;
    }
    client.close().await;
    client.stream.linger().await;
    reason
}

/// Sends the error in plaintext, and gives the client time to read it.
async fn refuse_in_plaintext(
    stream: &mut Stream,
    reason: CloseReason,
    control: &ConnectionControl,
) -> CloseReason {
    control.start_closing();
    if let Some(response) = reason.response()
        && stream.write_all(response).await.is_ok()
    {
        stream.linger().await;
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_does_not_hide_a_wrong_secret() {
        let code = |waited| answer_after(waited, CloseReason::AuthenticationFailed).code();
        assert_eq!(code(Ok(())), "authentication_failed");
        assert_eq!(
            code(Err(CloseReason::LoginTimeout)),
            "authentication_failed"
        );
        assert_eq!(code(Err(CloseReason::ClientGone)), "client_gone");
    }
}
