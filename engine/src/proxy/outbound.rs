//! The client's side, top to bottom: a driver's plain bytes, the server's TLS,
//! the gate, relay, close. The sidecar's story walked the other way: not a byte
//! of the driver's leaves before the server has proved itself.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use wire::local_opening::{EncryptionRequest, LocalOpening, LocalOpeningError, LocalOpeningStep};

use crate::io::buffer::{Buffer, Size};
use crate::io::offload::PendingJobs;
use crate::io::stream::{PgAddress, Stream};
use crate::session::control::ConnectionControl;
use crate::session::relay::{ClientSide, relay};
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::context::{HandlerFactory, ShardContext};
use crate::shard::{self, ConnectionPermit, HandlerContext};
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::tls::session::{HandshakeSummary, Session};

use crate::attestation::forwarder_gate::ServerGate;
use crate::io::target::{Target, TargetError};
use crate::tasks::discovery::TargetResolver;
/// What every connection of a shard is served with.
pub(crate) struct OutboundHandler {
    context: HandlerContext,
    jobs: PendingJobs,
    state: Arc<ForwarderState>,
    /// A driver that asks for SSL is explained once.
    explained: Cell<bool>,
}

/// What all shards of a forwarder share.
pub(crate) struct ForwarderState {
    pub(crate) resolver: Arc<TargetResolver>,
    /// With the client's own certificate, which is renewed while it runs.
    pub(crate) tls: ArcSwap<ClientConfig>,
    pub(crate) server_gate: ServerGate,
    /// For the TLS handshake with the server, and for each dial.
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
            },
            jobs: context.jobs,
            state: Arc::clone(self),
            explained: Cell::new(false),
        }
    }
}

type Server = TlsStream<UnbufferedClientConnection>;

impl shard::ConnectionHandler for OutboundHandler {
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
            Err(end) => return self.refuse(&mut driver, end, control, info).await,
        };
        if !permit.is_granted() {
            let end = CloseReason::TooManyConnections;
            return self.refuse(&mut driver, end, control, info).await;
        }
        // Boxed: what only the way to the server needs is given back before
        // the relay.
        let server = match Box::pin(self.connect_target(control, info)).await {
            Ok(server) => server,
            // The driver has said all that it was asked.
            Err(CloseReason::LoginTimeout) => {
                let end = CloseReason::ServerTimeout;
                return self.refuse(&mut driver, end, control, info).await;
            }
            Err(end) => return self.refuse(&mut driver, end, control, info).await,
        };
        let _fd_guard = control.register_upstream_fd(server.stream.raw_fd());
        match opened {
            Opened::Session(first) => {
                control.login_done();
                self.entered(info);
                let end = relay(server, driver, first, ClientSide::Plain, control).await;
                end.swap_sides()
            }
            Opened::Cancel(packet) => cancel(server, &packet, control).await,
        }
    }
}

enum Opened {
    /// A StartupMessage, and what came behind it.
    Session(Buffer),
    Cancel(Vec<u8>),
}

impl OutboundHandler {
    fn entered(&self, info: &RefCell<ConnectionInfo>) {
        let mut info = info.borrow_mut();
        info.is_session = true;
        let took = info.accepted.elapsed();
        self.context.shard_metrics.session_started(info.role, took);
    }

    /// The driver's first bytes.
    async fn open(
        &self,
        driver: &mut Stream,
        control: &ConnectionControl,
    ) -> Result<Opened, CloseReason> {
        let mut local = LocalOpening::new();
        let mut incoming = Buffer::take(Size::Small);
        loop {
            match local.advance(incoming.filled()) {
                LocalOpeningStep::Read(next) => {
                    local = next;
                    let (result, filled) = driver.read(incoming.make_room()).await;
                    incoming = filled;
                    match result {
                        Ok(0) => return Err(control.or_terminated(CloseReason::ClientGone)),
                        Ok(_) => {}
                        Err(error) => {
                            return Err(control.or_terminated(CloseReason::ClientIo(error)));
                        }
                    }
                }
                LocalOpeningStep::Decline {
                    request: encryption,
                    consumed,
                    next,
                } => {
                    local = next;
                    incoming.consume(consumed);
                    self.explain(encryption);
                    let sent = driver.write_all(vec![b'N']).await;
                    sent.map_err(|error| control.or_terminated(CloseReason::ClientIo(error)))?;
                }
                LocalOpeningStep::Session => return Ok(Opened::Session(incoming)),
                LocalOpeningStep::Cancel(request) => {
                    return Ok(Opened::Cancel(request.as_bytes().to_vec()));
                }
                LocalOpeningStep::Refuse(error) => {
                    if error == LocalOpeningError::DirectTls {
                        self.explain(EncryptionRequest::Ssl);
                    }
                    return Err(CloseReason::Local(error));
                }
            }
        }
    }

    fn explain(&self, encryption: EncryptionRequest) {
        if encryption == EncryptionRequest::Ssl && !self.explained.replace(true) {
            tracing::warn!(
                "a client asks for SSL: set sslmode=disable in it. What it sends here stays on \
                 this machine, and from here on everything is encrypted"
            );
        }
    }

    /// The server, connected, in TLS, and let in. One that fails may have moved:
    /// where it is now is asked, and tried, once.
    async fn connect_target(
        &self,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<Server, CloseReason> {
        let target = control.race_terminated(self.lookup(None)).await??;
        let end = match self.connect(&target, control, info).await {
            Ok(server) => return Ok(server),
            Err(end) => end,
        };
        let stale = Some(Arc::clone(&target));
        match control.race_terminated(self.lookup(stale)).await? {
            Ok(other) if *other != *target => self.connect(&other, control, info).await,
            Ok(_) => Err(end),
            Err(error) => {
                tracing::warn!(%error, "where the server is now cannot be told");
                Err(end)
            }
        }
    }

    async fn connect(
        &self,
        target: &Target,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<Server, CloseReason> {
        let stream = self.dial(target, control).await?;
        let _fd_guard = control.register_upstream_fd(stream.raw_fd());
        let (server, agreed) = self.encrypt(stream, target, control, info).await?;
        let verdict = self.context.gate.admit(agreed.chain.as_deref());
        let admitted = control.race_terminated(verdict).await?;
        let attested = admitted.map_err(CloseReason::ServerDenied)?;
        control.set_peer(attested.peer().cloned());
        Ok(server)
    }

    /// Where the server is; another answer than `stale` where there is one.
    async fn lookup(&self, stale: Option<Arc<Target>>) -> Result<Arc<Target>, CloseReason> {
        if let Some(target) = self.state.resolver.fresh(stale.as_ref()) {
            return Ok(target);
        }
        let resolver = &self.state.resolver;
        let asked = self.jobs.request(|done| resolver.lookup(stale, done));
        match asked.await {
            Ok(found) => found.map_err(CloseReason::Target),
            Err(_) => Err(CloseReason::Target(TargetError::Overloaded)),
        }
    }

    /// The first of its addresses that answers.
    async fn dial(
        &self,
        target: &Target,
        control: &ConnectionControl,
    ) -> Result<Stream, CloseReason> {
        let mut last = std::io::ErrorKind::AddrNotAvailable.into();
        for address in &target.addresses {
            let deadline = Instant::now() + self.state.connect_timeout;
            let deadline = deadline.min(control.login_deadline());
            match Stream::dial(&PgAddress::Tcp(*address), deadline).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
            if let Some(order) = control.terminate_reason() {
                return Err(order.into());
            }
        }
        Err(CloseReason::ServerUnreachable(target.name(), last))
    }

    /// The TLS handshake. A raw ClientHello, with the server's name and without
    /// ALPN: a gateway in between routes by the one and knows not the other.
    async fn encrypt(
        &self,
        stream: Stream,
        target: &Target,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(Server, HandshakeSummary), CloseReason> {
        let config = self.state.tls.load_full();
        let connection = UnbufferedClientConnection::new(config, target.server.clone())
            .map_err(|error| CloseReason::ServerTls(error.into()))?;
        let fd = stream.raw_fd();
        let mut server =
            TlsStream::new(stream, Session::new(connection), Buffer::take(Size::Small));
        let timeout = self.state.connect_timeout;
        let handshake = server.handshake(&self.context.handshake_queue);
        let (result, in_time) = within_connect_timeout(handshake, fd, timeout).await;
        let agreed = result.map_err(|error| {
            control.or_terminated(match error {
                _ if !in_time => CloseReason::HandshakeTimeout(timeout),
                StreamError::Eof => CloseReason::ServerHungUp,
                StreamError::Io(error) => CloseReason::ServerIo(error),
                StreamError::Tls(error) => CloseReason::ServerTls(error),
            })
        })?;
        let mut info = info.borrow_mut();
        info.tls = agreed.version;
        self.context
            .shard_metrics
            .handshake_done(info.accepted.elapsed());
        Ok((server, agreed))
    }

    /// Says why, in the log first, and lets the driver read it.
    async fn refuse(
        &self,
        driver: &mut Stream,
        end: CloseReason,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> CloseReason {
        control.closing();
        self.context
            .access_log
            .ended(&info.borrow(), control.bytes(), &end);
        info.borrow_mut().logged = true;
        if let Some(text) = end.response()
            && driver.write_all(text).await.is_ok()
        {
            driver.linger().await;
        }
        end
    }
}

/// Runs `work`, and after `time` shuts its socket down, which ends its reads;
/// `false` if that was necessary. Nothing is dropped half-way.
async fn within_connect_timeout<T>(
    work: impl Future<Output = T>,
    fd: RawFd,
    time: Duration,
) -> (T, bool) {
    let mut work = pin!(work);
    let mut timer = pin!(monoio::time::sleep(time));
    let mut in_time = true;
    poll_fn(|cx| {
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready((result, in_time));
        }
        if in_time && timer.as_mut().poll(cx).is_ready() {
            in_time = false;
            let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
            return work.as_mut().poll(cx).map(|result| (result, false));
        }
        Poll::Pending
    })
    .await
}

/// Hands a CancelRequest to the server, and waits until it has been dealt with.
async fn cancel(mut server: Server, packet: &[u8], control: &ConnectionControl) -> CloseReason {
    if let Err(error) = server.send(packet).await {
        return error.into_close_reason(control).swap_sides();
    }
    // The server closes when it is done; clients wait for that.
    let _ = server.read_more().await;
    server.close().await;
    control.or_terminated(CloseReason::Cancelled)
}
