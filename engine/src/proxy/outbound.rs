//! The forwarder's connections, from the first byte of a driver to the last: plaintext opening,
//! lookup, dial, TLS with the server, attestation, relay, close.
//!
//! No byte of the driver may leave this machine before the server is verified.

mod order;
mod servers;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use attest::manifest::LeaderInstance;
use attest::{AttestedPeer, Denial};
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::SecureRandom;
use wire::local_opening::{EncryptionRequest, LocalOpening, LocalOpeningError, LocalOpeningStep};

use crate::attestation::custom::CustomVerifier;
use crate::attestation::forwarder_gate::ServerGate;
use crate::io::buffer::{Buffer, Size};
use crate::io::offload::PendingJobs;
use crate::io::stream::{PgAddress, Stream};
use crate::io::target::{Endpoint, HostOrder, Target, TargetError};
use crate::proxy::{read_opening, reply_opening, shut_down_after};
use crate::session::control::ConnectionControl;
use crate::session::relay::{ClientSide, relay};
use crate::session::server_endpoints::ServerEndpoints;
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::connection_limit::ConnectionPermit;
use crate::shard::context::{HandlerFactory, ShardContext};
use crate::shard::handler::{ConnectionHandler, HandlerContext};
use crate::tasks::discovery::TargetResolver;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::failures::Failures;
use crate::telemetry::log::Position;
use crate::telemetry::target_metrics::TargetMetrics;
use crate::tls::session::{HandshakeSummary, Session};

pub(crate) use order::Penalties;
use servers::{time_left, within};

/// How long a driver's error waits for the log line about it, and how often that is checked. Usually it takes
/// microseconds.
const LOG_WAIT: Duration = Duration::from_millis(100);
const LOG_POLL: Duration = Duration::from_millis(1);

/// Serves the driver connections of one shard.
pub(crate) struct OutboundHandler {
    context: HandlerContext,
    jobs: PendingJobs,
    state: Arc<ForwarderState>,
    /// Whether the warning about drivers that request SSL has been logged.
    ssl_warning_logged: Cell<bool>,
}

/// The state that all shards of a forwarder share.
pub(crate) struct ForwarderState {
    /// One for each configured server.
    pub(crate) resolvers: Vec<Arc<TargetResolver>>,
    /// The order in which servers and addresses are tried.
    pub(crate) host_order: HostOrder,
    pub(crate) random: &'static dyn SecureRandom,
    pub(crate) penalties: Penalties,
    pub(crate) target_metrics: TargetMetrics,
    pub(crate) endpoints: Arc<ServerEndpoints>,
    /// Contains the client certificate, which is renewed at run time.
    pub(crate) tls: ArcSwap<ClientConfig>,
    pub(crate) server_gate: ServerGate,
    /// The application's own decision about verified servers.
    pub(crate) verifier: Option<CustomVerifier>,
    /// The failures that the application can ask for.
    pub(crate) failures: Arc<Failures>,
    /// The limit for the TLS handshake with the server, and for each dial.
    pub(crate) connect_timeout: Duration,
}

impl HandlerFactory for ForwarderState {
    type Handler = OutboundHandler;

    fn handler(self: &Arc<Self>, context: ShardContext) -> OutboundHandler {
        OutboundHandler {
            context: HandlerContext {
                handshake_queue: context.handshake_queue.clone(),
                gate: self.server_gate.gate(&context.jobs, &context.shard_metrics),
                shard_metrics: Rc::clone(&context.shard_metrics),
                access_log: Rc::clone(&context.access_log),
                audit: None,
                links: None,
            },
            jobs: context.jobs,
            state: Arc::clone(self),
            ssl_warning_logged: Cell::new(false),
        }
    }
}

type Server = TlsStream<UnbufferedClientConnection>;

impl ConnectionHandler for OutboundHandler {
    fn context(&self) -> &HandlerContext {
        &self.context
    }

    async fn serve(
        &self,
        mut driver: Stream,
        permit: &ConnectionPermit,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> CloseReason {
        let _fd_guard = control.register_client_fd(driver.raw_fd());
        let opened = match self.open(&mut driver, control).await {
            Ok(opened) => opened,
            Err(reason) => return self.refuse(&mut driver, reason, control, info).await,
        };
        let received = match opened {
            Opened::Session(received) => received,
            Opened::Cancel(packet) => {
                return match Box::pin(self.cancel(&packet, control, info)).await {
                    reason @ (CloseReason::Cancelled | CloseReason::CancelExpired) => reason,
                    reason => self.refuse(&mut driver, reason, control, info).await,
                };
            }
        };
        if permit.begin_session().is_err() {
            let reason = CloseReason::TooManyConnections;
            return self.refuse(&mut driver, reason, control, info).await;
        }
        // Boxed, so that its memory is freed before the relay.
        let (server, endpoint) = match Box::pin(self.connect_target(control, info)).await {
            Ok(connected) => connected,
            // The driver has sent everything, so that the server caused the timeout.
            Err(CloseReason::LoginTimeout) => {
                let reason = CloseReason::ServerTimeout;
                return self.refuse(&mut driver, reason, control, info).await;
            }
            Err(reason) => return self.refuse(&mut driver, reason, control, info).await,
        };
        let _fd_guard = control.register_upstream_fd(server.stream.raw_fd());
        control.set_endpoint(endpoint);
        control.login_done();
        info.borrow_mut()
            .session_started(&self.context.shard_metrics);
        let reason = relay(server, driver, received, ClientSide::Plain, control).await;
        let response = reason.driver_response();
        let reason = reason.swap_sides();
        let peer = info.borrow().peer;
        self.state
            .failures
            .record(&reason, response.as_deref(), peer, true);
        reason
    }

    async fn verify_target(
        &self,
        target: &Arc<Target>,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(), CloseReason> {
        Box::pin(self.probe(target, control, info)).await
    }
}

enum Opened {
    /// A StartupMessage, and the bytes received after it.
    Session(Buffer),
    Cancel(Vec<u8>),
}

impl OutboundHandler {
    /// Reads the first bytes of the driver.
    async fn open(
        &self,
        driver: &mut Stream,
        control: &ConnectionControl,
    ) -> Result<Opened, CloseReason> {
        let mut opening = LocalOpening::new();
        let mut incoming = Buffer::take(Size::Small);
        loop {
            match opening.advance(incoming.filled()) {
                LocalOpeningStep::Read(next) => {
                    opening = next;
                    incoming = read_opening(driver, incoming, control).await?;
                }
                LocalOpeningStep::Decline {
                    request,
                    consumed,
                    next,
                } => {
                    opening = next;
                    incoming.consume(consumed);
                    self.warn_about_ssl(request);
                    reply_opening(driver, b'N', control).await?;
                }
                LocalOpeningStep::Session => return Ok(Opened::Session(incoming)),
                LocalOpeningStep::Cancel(request) => {
                    return Ok(Opened::Cancel(request.as_bytes().to_vec()));
                }
                LocalOpeningStep::Refuse(error) => {
                    if error == LocalOpeningError::DirectTls {
                        self.warn_about_ssl(EncryptionRequest::Ssl);
                    }
                    return Err(CloseReason::LocalOpening(error));
                }
            }
        }
    }

    /// Logs once that drivers do not need SSL here.
    fn warn_about_ssl(&self, request: EncryptionRequest) {
        if request == EncryptionRequest::Ssl && !self.ssl_warning_logged.replace(true) {
            tracing::warn!(
                "a client requests SSL: set sslmode=disable in it. Its connection to the \
                 forwarder stays on this machine, and the forwarder encrypts the rest of the path"
            );
        }
    }

    /// Connects to one address of the server, and verifies it, by `until` if that is set.
    async fn connect(
        &self,
        target: &Arc<Target>,
        address: SocketAddr,
        until: Option<Instant>,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(Server, Arc<Endpoint>), CloseReason> {
        let stream = self.dial(target, address, until, control).await?;
        let _fd_guard = control.register_upstream_fd(stream.raw_fd());
        let timeout = time_left(self.state.connect_timeout, until);
        let tls = self.connect_tls(stream, target, timeout, control, info);
        let (server, handshake) = tls.await?;
        let verdict = self.context.gate.admit(handshake.chain.as_deref(), || ());
        let verdict = within(until, control.race_terminated(verdict)).await?;
        let attested = verdict.map_err(|denial| self.denied(denial))?;
        if let (Some(leader), Some(peer)) = (&target.leader, attested.peer()) {
            check_leader(leader, peer)?;
        }
        self.confirm(attested.peer(), until, control).await?;
        control.set_peer(attested.peer().cloned());
        Ok((server, self.state.endpoints.endpoint(target, address)))
    }

    /// Asks the application about a verified server, if it has a say.
    async fn confirm(
        &self,
        peer: Option<&Arc<AttestedPeer>>,
        until: Option<Instant>,
        control: &ConnectionControl,
    ) -> Result<(), CloseReason> {
        let (Some(verifier), Some(peer)) = (&self.state.verifier, peer) else {
            return Ok(());
        };
        let asked = self
            .jobs
            .request(|done| verifier.decide(Arc::clone(peer), done));
        // The deadline is kept here: the application may block the thread that it runs on.
        let decision = async {
            match monoio::time::timeout(verifier.timeout(), asked).await {
                Ok(Ok(decision)) => decision,
                Ok(Err(_)) => Err(Denial::Overloaded),
                Err(_) => Err(verifier.timed_out()),
            }
        };
        let decision = within(until, control.race_terminated(decision)).await?;
        decision.map_err(|denial| self.denied(denial))
    }

    fn denied(&self, denial: Denial) -> CloseReason {
        CloseReason::ServerDenied {
            denial,
            allow_simulator: self.context.gate.allows_simulators(),
        }
    }

    /// Looks up the server. `failed` is a target that could not be used: it is not returned
    /// from the cache.
    async fn lookup(
        &self,
        resolver: &Arc<TargetResolver>,
        failed: Option<Arc<Target>>,
    ) -> Result<Arc<Target>, CloseReason> {
        if let Some(target) = resolver.cached(failed.as_ref()) {
            return Ok(target);
        }
        match self
            .jobs
            .request(|done| resolver.lookup(failed, done))
            .await
        {
            Ok(target) => target.map_err(CloseReason::Target),
            Err(_) => Err(CloseReason::Target(TargetError::Overloaded)),
        }
    }

    async fn dial(
        &self,
        target: &Target,
        address: SocketAddr,
        until: Option<Instant>,
        control: &ConnectionControl,
    ) -> Result<Stream, CloseReason> {
        let timeout = time_left(self.state.connect_timeout, until);
        let deadline = (Instant::now() + timeout).min(control.login_deadline());
        let dialed = Stream::dial(&PgAddress::Tcp(address), deadline).await;
        dialed.map_err(|error| {
            control.or_terminated(CloseReason::ServerUnreachable(target.name(), error))
        })
    }

    /// Performs the TLS handshake within `timeout`. The ClientHello comes first, without an SSLRequest, and has
    /// SNI but no ALPN: a dstack gateway on the path routes by SNI and does not know the protocol.
    async fn connect_tls(
        &self,
        stream: Stream,
        target: &Target,
        timeout: Duration,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(Server, HandshakeSummary), CloseReason> {
        let config = self.state.tls.load_full();
        let connection = UnbufferedClientConnection::new(config, target.server.clone())
            .map_err(|error| CloseReason::ServerTls(error.into()))?;
        let fd = stream.raw_fd();
        let mut server =
            TlsStream::new(stream, Session::new(connection), Buffer::take(Size::Small));
        let handshake = server.handshake(&self.context.handshake_queue, control);
        let (result, in_time) = shut_down_after(timeout, fd, handshake).await;
        let summary = result.map_err(|error| {
            control.or_terminated(match error {
                _ if !in_time => CloseReason::HandshakeTimeout(timeout),
                StreamError::Eof => CloseReason::ServerHungUp,
                StreamError::Io(error) => CloseReason::ServerIo(error),
                StreamError::Tls(error) => CloseReason::ServerTls(error),
            })
        })?;
        info.borrow_mut()
            .handshake_done(summary.version, &self.context.shard_metrics);
        Ok((server, summary))
    }

    /// Logs the error, sends it to the driver, and gives the driver time to read it. The log line
    /// comes first, because the driver may never read, and because both often end up on one terminal: the line says more
    /// than the driver's error.
    async fn refuse(
        &self,
        driver: &mut Stream,
        reason: CloseReason,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> CloseReason {
        control.start_closing();
        self.context
            .access_log
            .ended(&info.borrow(), control.bytes(), &reason);
        info.borrow_mut().logged = true;
        let (response, peer) = (reason.response(), info.borrow().peer);
        // Before the driver: when it fails, its program can ask why.
        self.state
            .failures
            .record(&reason, response.as_deref(), peer, false);
        await_log().await;
        if let Some(response) = response
            && driver.write_all(response).await.is_ok()
        {
            driver.linger().await;
        }
        reason
    }
}

/// Checks that the server is the instance that the manifest names: its address may lead to another one, which a
/// gateway, DNS or a replayed certificate chose. A server that is admitted without evidence proves no instance, and
/// is not compared.
fn check_leader(leader: &LeaderInstance, peer: &AttestedPeer) -> Result<(), CloseReason> {
    let proven = peer.instance_id().map(|id| id.to_string());
    if proven.as_deref() == Some(leader.as_str()) {
        return Ok(());
    }
    Err(CloseReason::LeaderMismatch {
        expected: leader.to_string(),
        proven,
    })
}

/// Waits until what was logged so far is on stderr, which another thread writes. A terminal that does not take it must not
/// keep the driver waiting for longer than [`LOG_WAIT`].
async fn await_log() {
    let position = Position::now();
    let deadline = Instant::now() + LOG_WAIT;
    while !position.is_written() && Instant::now() < deadline {
        monoio::time::sleep(LOG_POLL).await;
    }
}

/// Forwards a CancelRequest to the server, and waits until it has been handled.
async fn forward_cancel(
    mut server: Server,
    packet: &[u8],
    control: &ConnectionControl,
) -> CloseReason {
    if let Err(error) = server.send(packet).await {
        return error.into_close_reason(control).swap_sides();
    }
    // The server closes when it is done. Clients wait for that.
    let _ = server.read_more().await;
    server.close().await;
    control.or_terminated(CloseReason::Cancelled)
}
