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
use wire::local::{Encryption, Local, LocalError, LocalStep};

use crate::io::buffer::{Buffer, Size};
use crate::io::offload::PendingJobs;
use crate::io::stream::{Endpoint, Stream};
use crate::session::control::Control;
use crate::session::relay::{Driver, relay};
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::context::{Desk, Plan};
use crate::shard::{self, Admission, Common};
use crate::telemetry::close_reason::End;
use crate::telemetry::connection_info::Facts;
use crate::tls::session::{Agreed, Session};

use crate::attestation::forwarder_gate::Verdicts;
use crate::io::target::{Target, TargetError};
use crate::tasks::discovery::Directory;
/// What every connection of a shard is served with.
pub(crate) struct Service {
    common: Common,
    jobs: PendingJobs,
    line: Arc<Line>,
    /// A driver that asks for SSL is explained once.
    explained: Cell<bool>,
}

/// What all shards of a forwarder share.
pub(crate) struct Line {
    pub(crate) directory: Arc<Directory>,
    /// With the client's own certificate, which is renewed while it runs.
    pub(crate) tls: ArcSwap<ClientConfig>,
    pub(crate) verdicts: Verdicts,
    /// For the TLS handshake with the server, and for each dial.
    pub(crate) connect_timeout: Duration,
}

impl Plan for Line {
    type Service = Service;

    fn service(self: &Arc<Self>, desk: Desk) -> Service {
        Service {
            common: Common {
                lane: desk.lane.clone(),
                gate: self.verdicts.gate(&desk.jobs, &desk.meters),
                meters: Rc::clone(&desk.meters),
                journal: Rc::clone(&desk.journal),
            },
            jobs: desk.jobs,
            line: Arc::clone(self),
            explained: Cell::new(false),
        }
    }
}

type Server = TlsStream<UnbufferedClientConnection>;

impl shard::Service for Service {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn serve(
        &self,
        mut driver: Stream,
        admission: &Admission,
        control: &Control,
        facts: &RefCell<Facts>,
    ) -> End {
        let _leash = control.hold_client(driver.raw_fd());
        let opened = match self.open(&mut driver, control).await {
            Ok(opened) => opened,
            Err(end) => return self.refuse(&mut driver, end, control, facts).await,
        };
        if !admission.is_granted() {
            let end = End::TooManyConnections;
            return self.refuse(&mut driver, end, control, facts).await;
        }
        // Boxed: what only the way to the server needs is given back before
        // the relay.
        let server = match Box::pin(self.reach(control, facts)).await {
            Ok(server) => server,
            // The driver has said all that it was asked.
            Err(End::LoginTimeout) => {
                let end = End::ServerTimeout;
                return self.refuse(&mut driver, end, control, facts).await;
            }
            Err(end) => return self.refuse(&mut driver, end, control, facts).await,
        };
        let _leash = control.hold_upstream(server.stream.raw_fd());
        match opened {
            Opened::Session(first) => {
                control.login_done();
                self.entered(facts);
                let end = relay(server, driver, first, Driver::InPlain, control).await;
                end.seen_from_the_other_side()
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

impl Service {
    fn entered(&self, facts: &RefCell<Facts>) {
        let mut facts = facts.borrow_mut();
        facts.entered = true;
        let took = facts.accepted.elapsed();
        self.common.meters.entered(facts.role, took);
    }

    /// The driver's first bytes.
    async fn open(&self, driver: &mut Stream, control: &Control) -> Result<Opened, End> {
        let mut local = Local::new();
        let mut incoming = Buffer::take(Size::Small);
        loop {
            match local.advance(incoming.filled()) {
                LocalStep::Read(next) => {
                    local = next;
                    let (result, filled) = driver.read(incoming.make_room()).await;
                    incoming = filled;
                    match result {
                        Ok(0) => return Err(control.end_or(End::ClientGone)),
                        Ok(_) => {}
                        Err(error) => return Err(control.end_or(End::ClientIo(error))),
                    }
                }
                LocalStep::Decline {
                    encryption,
                    consumed,
                    next,
                } => {
                    local = next;
                    incoming.consume(consumed);
                    self.explain(encryption);
                    let sent = driver.write_all(vec![b'N']).await;
                    sent.map_err(|error| control.end_or(End::ClientIo(error)))?;
                }
                LocalStep::Session => return Ok(Opened::Session(incoming)),
                LocalStep::Cancel(request) => {
                    return Ok(Opened::Cancel(request.as_bytes().to_vec()));
                }
                LocalStep::Refuse(error) => {
                    if error == LocalError::DirectTls {
                        self.explain(Encryption::Ssl);
                    }
                    return Err(End::Local(error));
                }
            }
        }
    }

    fn explain(&self, encryption: Encryption) {
        if encryption == Encryption::Ssl && !self.explained.replace(true) {
            tracing::warn!(
                "a client asks for SSL: set sslmode=disable in it. What it sends here stays on \
                 this machine, and from here on everything is encrypted"
            );
        }
    }

    /// The server, connected, in TLS, and let in. One that fails may have moved:
    /// where it is now is asked, and tried, once.
    async fn reach(&self, control: &Control, facts: &RefCell<Facts>) -> Result<Server, End> {
        let target = control.unless_ended(self.look_up(None)).await??;
        let end = match self.connect(&target, control, facts).await {
            Ok(server) => return Ok(server),
            Err(end) => end,
        };
        let stale = Some(Arc::clone(&target));
        match control.unless_ended(self.look_up(stale)).await? {
            Ok(other) if *other != *target => self.connect(&other, control, facts).await,
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
        control: &Control,
        facts: &RefCell<Facts>,
    ) -> Result<Server, End> {
        let stream = self.dial(target, control).await?;
        let _leash = control.hold_upstream(stream.raw_fd());
        let (server, agreed) = self.encrypt(stream, target, control, facts).await?;
        let verdict = self.common.gate.admit(agreed.chain.as_deref());
        let admitted = control.unless_ended(verdict).await?;
        let attested = admitted.map_err(End::ServerDenied)?;
        control.set_peer(attested.peer().cloned());
        Ok(server)
    }

    /// Where the server is; another answer than `stale` where there is one.
    async fn look_up(&self, stale: Option<Arc<Target>>) -> Result<Arc<Target>, End> {
        if let Some(target) = self.line.directory.fresh(stale.as_ref()) {
            return Ok(target);
        }
        let directory = &self.line.directory;
        let asked = self.jobs.request(|done| directory.look_up(stale, done));
        match asked.await {
            Ok(found) => found.map_err(End::Target),
            Err(_) => Err(End::Target(TargetError::Overloaded)),
        }
    }

    /// The first of its addresses that answers.
    async fn dial(&self, target: &Target, control: &Control) -> Result<Stream, End> {
        let mut last = std::io::ErrorKind::AddrNotAvailable.into();
        for address in &target.addresses {
            let deadline = Instant::now() + self.line.connect_timeout;
            let deadline = deadline.min(control.login_deadline());
            match Stream::dial(&Endpoint::Tcp(*address), deadline).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
            if let Some(order) = control.asked_to_end() {
                return Err(order.into());
            }
        }
        Err(End::ServerUnreachable(target.name(), last))
    }

    /// The TLS handshake. A raw ClientHello, with the server's name and without
    /// ALPN: a gateway in between routes by the one and knows not the other.
    async fn encrypt(
        &self,
        stream: Stream,
        target: &Target,
        control: &Control,
        facts: &RefCell<Facts>,
    ) -> Result<(Server, Agreed), End> {
        let config = self.line.tls.load_full();
        let connection = UnbufferedClientConnection::new(config, target.server.clone())
            .map_err(|error| End::ServerTls(error.into()))?;
        let fd = stream.raw_fd();
        let mut server =
            TlsStream::new(stream, Session::new(connection), Buffer::take(Size::Small));
        let timeout = self.line.connect_timeout;
        let handshake = server.handshake(&self.common.lane);
        let (result, in_time) = hurried(handshake, fd, timeout).await;
        let agreed = result.map_err(|error| {
            control.end_or(match error {
                _ if !in_time => End::HandshakeTimeout(timeout),
                StreamError::Eof => End::ServerHungUp,
                StreamError::Io(error) => End::ServerIo(error),
                StreamError::Tls(error) => End::ServerTls(error),
            })
        })?;
        let mut facts = facts.borrow_mut();
        facts.tls = agreed.version;
        self.common.meters.encrypted(facts.accepted.elapsed());
        Ok((server, agreed))
    }

    /// Says why, in the log first, and lets the driver read it.
    async fn refuse(
        &self,
        driver: &mut Stream,
        end: End,
        control: &Control,
        facts: &RefCell<Facts>,
    ) -> End {
        control.closing();
        self.common
            .journal
            .ended(&facts.borrow(), control.bytes(), &end);
        facts.borrow_mut().written = true;
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
async fn hurried<T>(work: impl Future<Output = T>, fd: RawFd, time: Duration) -> (T, bool) {
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
async fn cancel(mut server: Server, packet: &[u8], control: &Control) -> End {
    if let Err(error) = server.send(packet).await {
        return error.into_end(control).seen_from_the_other_side();
    }
    // The server closes when it is done; clients wait for that.
    let _ = server.read_more().await;
    server.close().await;
    control.end_or(End::Cancelled)
}
