//! A client's way in, top to bottom: opening bytes, TLS, gate, login, Postgres,
//! relay, close. One function a step, in that order.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use wire::frontend::{AwaitStartup, PasswordStep, StartupStep, negotiate, request_password};
use wire::opening::{Opening, OpeningPolicy, OpeningStep};
use wire::startup::{ProtocolVersion, Startup};

use crate::attestation::gate::Attested;
use crate::auth::credential::Credential;
use crate::auth::role::Role;
use crate::io::buffer::{Buffer, Size};
use crate::io::stream::Stream;
use crate::proxy::upstream::{self, UpstreamLogin};
use crate::session::control::{ConnectionControl, FdGuard};
use crate::session::relay::{ClientSide, relay};
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::live_config::{LiveConfig, Snapshot};
use crate::shard::{self, ConnectionPermit, HandlerContext};
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::tls::session::{HandshakeSummary, Session};

/// What every connection of a shard is served with.
pub(crate) struct InboundHandler {
    pub(crate) context: HandlerContext,
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) upstream_login: UpstreamLogin,
    pub(crate) plaintext_cancel: bool,
    /// Simulator mode: whoever comes from this machine is `postgres` accept_unauthenticated.
    pub(crate) trust_loopback: bool,
    pub(crate) proxy_protocol_from: Vec<ipnet::IpNet>,
    pub(crate) require_alpn: bool,
}

type Client = TlsStream<UnbufferedServerConnection>;

impl InboundHandler {
    /// Whether a PROXY header from there is believed.
    fn believes(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let mut networks = self.proxy_protocol_from.iter();
        networks.any(|network| network.contains(&peer))
    }
}

impl shard::ConnectionHandler for InboundHandler {
    fn context(&self) -> &HandlerContext {
        &self.context
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
}

/// Serves one accepted connection to its end.
async fn serve(
    handler: &InboundHandler,
    stream: Stream,
    permit: &ConnectionPermit,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> CloseReason {
    let _fd_guard = control.register_client_fd(stream.raw_fd());
    // Boxed: what only the way in needs is given back before the relay, which
    // may idle for days.
    let arriving = Box::pin(establish(handler, stream, permit, control, info));
    let (_fd_guard, relayed) = match arriving.await {
        Ok((client, session)) => {
            entered(handler, info);
            begin(client, session, control)
        }
        Err(end) => return end,
    };
    relayed.await
}

/// From the login to the relay. Apart, so that the future of a session has no room
/// for what goes in here.
fn begin(
    client: Client,
    session: upstream::LoggedIn,
    control: &ConnectionControl,
) -> (FdGuard<'_>, impl Future<Output = CloseReason>) {
    let upstream::LoggedIn { stream, first } = session;
    let leash = control.register_upstream_fd(stream.raw_fd());
    control.login_done();
    let relayed = relay(client, stream, first, ClientSide::Tls, control);
    (leash, relayed)
}

/// From the first byte to ReadyForQuery; who does not get so far has been told
/// why.
async fn establish(
    handler: &InboundHandler,
    mut stream: Stream,
    permit: &ConnectionPermit,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> Result<(Client, upstream::LoggedIn), CloseReason> {
    let snapshot = handler.live.read();
    let incoming = match open(handler, &mut stream, control, info).await {
        Ok(Opened::Tls(incoming)) => incoming,
        Ok(Opened::Cancel(packet)) => {
            return Err(upstream::cancel(&handler.upstream_login, packet, control).await);
        }
        Err(end) => return Err(refuse_in_plaintext(&mut stream, end, control).await),
    };
    let (mut client, agreed) = encrypt(handler, &snapshot, stream, incoming, control, info).await?;
    let attested = match attest(handler, agreed.chain, control).await {
        Ok(attested) => attested,
        Err(end) => return Err(refuse(&mut client, end, control).await),
    };
    let login = LoginContext {
        handler,
        snapshot: &snapshot,
        permit,
        control,
        info,
        alpn: agreed.alpn,
    };
    match login.log_in(&mut client, &attested).await {
        Ok(Entry::Session(session)) => Ok((client, session)),
        Ok(Entry::Cancel(packet)) => {
            let end = upstream::cancel(&handler.upstream_login, packet, control).await;
            client.close().await;
            Err(end)
        }
        Err(end) => Err(refuse(&mut client, end, control).await),
    }
}

fn entered(handler: &InboundHandler, info: &RefCell<ConnectionInfo>) {
    let mut info = info.borrow_mut();
    info.is_session = true;
    let took = info.accepted.elapsed();
    handler
        .context
        .shard_metrics
        .session_started(info.role, took);
}

enum Opened {
    /// A ClientHello comes, or its first bytes are here.
    Tls(Buffer),
    Cancel(Vec<u8>),
}

/// The plaintext bytes before TLS.
async fn open(
    handler: &InboundHandler,
    stream: &mut Stream,
    control: &ConnectionControl,
    info: &RefCell<ConnectionInfo>,
) -> Result<Opened, CloseReason> {
    let peer = info.borrow().peer.address();
    let mut openings = Opening::new(OpeningPolicy {
        plaintext_cancel: handler.plaintext_cancel,
        proxy_protocol: peer.is_some_and(|peer| handler.believes(peer.ip())),
    });
    let mut incoming = Buffer::take(Size::Small);
    loop {
        match openings.advance(incoming.filled()) {
            OpeningStep::Read(next) => {
                openings = next;
                let (result, filled) = stream.read(incoming.make_room()).await;
                incoming = filled;
                match result {
                    Ok(0) => return Err(control.or_terminated(CloseReason::ClientGone)),
                    Ok(_) => {}
                    Err(error) => return Err(control.or_terminated(CloseReason::ClientIo(error))),
                }
            }
            OpeningStep::Reply {
                byte,
                consumed,
                next,
            } => {
                openings = next;
                incoming.consume(consumed);
                stream
                    .write_all(vec![byte])
                    .await
                    .map_err(|error| control.or_terminated(CloseReason::ClientIo(error)))?;
            }
            OpeningStep::Proxied {
                source,
                consumed,
                next,
            } => {
                openings = next;
                incoming.consume(consumed);
                let mut info = info.borrow_mut();
                (info.proxied_client, info.via_proxy) = (source, true);
            }
            OpeningStep::Tls => return Ok(Opened::Tls(incoming)),
            OpeningStep::Cancel(request) => return Ok(Opened::Cancel(request.as_bytes().to_vec())),
            OpeningStep::Refuse(error) => return Err(error.into()),
        }
    }
}

/// The TLS handshake.
async fn encrypt(
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
    let agreed = match client.handshake(&handler.context.handshake_queue).await {
        Ok(agreed) => agreed,
        Err(StreamError::Eof) => return Err(control.or_terminated(CloseReason::ClientGone)),
        Err(StreamError::Io(error)) => {
            return Err(control.or_terminated(CloseReason::ClientIo(error)));
        }
        Err(StreamError::Tls(error)) => {
            // The alert has been sent; closing over what the client still
            // sends would take it away again.
            control.closing();
            client.stream.linger().await;
            return Err(CloseReason::TlsHandshake(error));
        }
    };
    let mut info = info.borrow_mut();
    info.tls = agreed.version;
    handler
        .context
        .shard_metrics
        .handshake_done(info.accepted.elapsed());
    Ok((client, agreed))
}

/// The gate: no byte of the login, and none of Postgres, before the verdict.
/// The certificates are let go of with it: a login may wait long.
async fn attest(
    handler: &InboundHandler,
    chain: Option<Vec<CertificateDer<'static>>>,
    control: &ConnectionControl,
) -> Result<Attested, CloseReason> {
    let verdict = handler.context.gate.admit(chain.as_deref());
    let attested = control.race_terminated(verdict).await??;
    control.set_peer(attested.peer().cloned());
    Ok(attested)
}

enum Entry {
    Session(upstream::LoggedIn),
    Cancel(Vec<u8>),
}

/// What the steps of the login have in common.
struct LoginContext<'a> {
    handler: &'a InboundHandler,
    snapshot: &'a Snapshot,
    permit: &'a ConnectionPermit,
    control: &'a ConnectionControl,
    info: &'a RefCell<ConnectionInfo>,
    /// Whether the client agreed on a protocol by ALPN.
    alpn: bool,
}

impl LoginContext<'_> {
    /// From the first message inside TLS to ReadyForQuery.
    async fn log_in(&self, client: &mut Client, _: &Attested) -> Result<Entry, CloseReason> {
        let (handler, control) = (self.handler, self.control);
        let startup = match read_startup(client, control).await? {
            FirstMessage::Startup(startup) => startup,
            FirstMessage::Cancel(packet) => return Ok(Entry::Cancel(packet)),
        };
        if handler.require_alpn && !self.alpn {
            return Err(CloseReason::AlpnMissing);
        }
        // Only known names get into the log: others may be a mistyped password.
        let role = Role::from_name(startup.role());
        self.info.borrow_mut().role = role;
        if !self.permit.is_granted() {
            return Err(CloseReason::TooManyConnections);
        }
        let (credential, version) = match self.accept_unauthenticated(role) {
            Some(credential) => (
                credential,
                self.trust_local_superuser(client, &startup).await?,
            ),
            None => self.check_password(client, &startup, role).await?,
        };
        let stream = handler.upstream_login.dial(control).await?;
        let leash = control.register_upstream_fd(stream.raw_fd());
        let session = handler
            .upstream_login
            .login(stream, client, &startup, version, &credential, control)
            .await?;
        drop(leash);
        Ok(Entry::Session(session))
    }

    /// In simulator mode, what a client of this machine need not be asked for.
    fn accept_unauthenticated(&self, role: Option<Role>) -> Option<Arc<Credential>> {
        let local = self.handler.trust_loopback && self.info.borrow().is_local();
        let accept_unauthenticated = local && role == Some(Role::Superuser);
        let credential = self.snapshot.authenticator.trusted_local_superuser();
        accept_unauthenticated
            .then_some(credential)
            .flatten()
            .cloned()
    }

    /// Negotiates the version, and asks for nothing.
    async fn trust_local_superuser(
        &self,
        client: &mut Client,
        startup: &Startup,
    ) -> Result<ProtocolVersion, CloseReason> {
        let newest = self
            .handler
            .upstream_login
            .upstream_version
            .newest_or_oldest()
            .await;
        let mut message = Vec::new();
        let version = negotiate(startup, newest, &mut message);
        if !message.is_empty() {
            let sent = client.send(&message).await;
            sent.map_err(|error| error.into_close_reason(self.control))?;
        }
        Ok(version)
    }

    /// Asks for the secret and compares it. No Postgres is involved yet.
    async fn check_password(
        &self,
        client: &mut Client,
        startup: &Startup,
        role: Option<Role>,
    ) -> Result<(Arc<Credential>, ProtocolVersion), CloseReason> {
        let control = self.control;
        let newest = self
            .handler
            .upstream_login
            .upstream_version
            .newest_or_oldest()
            .await;
        let mut question = Vec::new();
        let (mut await_password, version) = request_password(startup, newest, &mut question);
        client
            .send(&question)
            .await
            .map_err(|error| error.into_close_reason(control))?;
        loop {
            match await_password.advance(client.plain.filled()) {
                PasswordStep::Read(next) => await_password = next,
                PasswordStep::Password { password, consumed } => {
                    let admitted = self.snapshot.authenticator.admit(role, password).cloned();
                    client.plain.consume(consumed);
                    client.plain.wipe_used();
                    client.incoming.wipe_used();
                    return match admitted {
                        Some(credential) => Ok((credential, version)),
                        None => Err(CloseReason::AuthenticationFailed),
                    };
                }
                PasswordStep::Refuse(error) => return Err(error.into()),
            }
            read_more(client, control).await?;
        }
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

/// Says why inside TLS, and lets the client read it.
async fn refuse(client: &mut Client, end: CloseReason, control: &ConnectionControl) -> CloseReason {
    control.closing();
    if let Some(text) = end.response()
        && client.send(&text).await.is_err()
    {
        return end;
    }
    client.close().await;
    client.stream.linger().await;
    end
}

/// Says why in plaintext, and lets the client read it.
async fn refuse_in_plaintext(
    stream: &mut Stream,
    end: CloseReason,
    control: &ConnectionControl,
) -> CloseReason {
    control.closing();
    if let Some(text) = end.response()
        && stream.write_all(text).await.is_ok()
    {
        stream.linger().await;
    }
    end
}
