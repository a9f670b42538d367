//! The opening side of a link: lookup, dial, TLS, the verdict on the member, the request, its answer and the member's
//! name. A connection to a service of this member itself is relayed as it is.
//!
//! Nothing is sent to a member before it is verified, and no byte of a service before it is known that its name belongs
//! to its VM. Nothing is remembered of one that could not be reached: the next connection tries again.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use attest::Denial;
use attest::values::InstanceId;
use rustls::AlertDescription;
use rustls::client::UnbufferedClientConnection;
use wire::link::{
    BootId, LinkAnswerStep, LinkError, LinkRefusal, LinkRequest, MemberName, request_link,
};

use super::{
    CONNECT_TIMEOUT, Links, dial_service, instance_of, is_no_member, limit_unacknowledged,
};
use crate::cluster::member_names::BoundName;
use crate::cluster::state::ClusterState;
use crate::config::Service;
use crate::io::buffer::{Buffer, Size};
use crate::io::stream::{PgAddress, Stream};
use crate::io::target::{Target, TargetError};
use crate::proxy::shut_down_after;
use crate::session::control::ConnectionControl;
use crate::session::plain_relay::relay_plain;
use crate::session::relay::{ClientSide, relay};
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::connection_limit::{ConnectionPermit, LimitReached};
use crate::shard::handler::HandlerContext;
use crate::shard::live_config::LiveConfig;
use crate::shard::message::LinkRoute;
use crate::tasks::discovery::TargetResolver;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::link_info::{LinkDirection, LinkInfo};
use crate::tls::session::{HandshakeSummary, Session, TlsError};

type Server = TlsStream<UnbufferedClientConnection>;

/// What a link leads to.
#[derive(Clone, Copy)]
struct Destination<'a> {
    member: MemberName,
    service: &'a Service,
}

/// One link that this member opens for a local connection.
pub(crate) struct OpenedLink<'a> {
    pub(crate) context: &'a HandlerContext,
    pub(crate) links: &'a Links,
    pub(crate) live: &'a LiveConfig,
    pub(crate) permit: &'a ConnectionPermit,
    pub(crate) control: &'a ConnectionControl,
    pub(crate) info: &'a RefCell<ConnectionInfo>,
    /// Where open links are counted by member.
    pub(crate) cluster: Option<&'a ClusterState>,
}

impl OpenedLink<'_> {
    /// Serves a local connection to its end.
    pub(crate) async fn serve(&self, local: Stream, route: LinkRoute) -> CloseReason {
        let control = self.control;
        control.set_link();
        let _fd_guard = control.register_client_fd(local.raw_fd());
        let cluster = &self.links.state.cluster;
        let service = cluster.services.get(route.service);
        let name = self.links.state.names.get(route.member);
        let (Some(service), Some(name)) = (service, name) else {
            return LinkRefusal::UnknownService.into();
        };
        let link = LinkInfo::opened(Arc::clone(name), service.name);
        self.info.borrow_mut().link = Some(Box::new(link));
        let limit = self.permit.begin_link(LinkDirection::Opened);
        if let Err(LimitReached) = limit {
            return LinkRefusal::TooManyLinks.into();
        }
        let remote = self.links.state.resolvers.get(route.member);
        let member = cluster.members.get(route.member);
        match (member, remote) {
            (Some(member), Some(Some(resolver))) => {
                let destination = Destination {
                    member: member.name,
                    service,
                };
                self.serve_remote(local, route.member, resolver, destination)
                    .await
            }
            _ => self.serve_local(local, service).await,
        }
    }

    async fn serve_local(&self, local: Stream, service: &Service) -> CloseReason {
        let control = self.control;
        let dialled = match dial_service(service, control).await {
            Ok(dialled) => dialled,
            Err(error) => {
                return control.or_terminated(CloseReason::LinkServiceUnreachable(error));
            }
        };
        let _fd_guard = control.register_upstream_fd(dialled.raw_fd());
        self.opened();
        relay_plain(local, dialled, control).await
    }

    async fn serve_remote(
        &self,
        local: Stream,
        member: usize,
        resolver: &Arc<TargetResolver>,
        destination: Destination<'_>,
    ) -> CloseReason {
        // Boxed, so that its memory is freed before the relay.
        let connected = Box::pin(self.connect(resolver, destination)).await;
        self.note_answer(member, connected.as_ref().err());
        let (server, _bound) = match connected {
            Ok(connected) => connected,
            // Nothing is waited for but the other member.
            Err(CloseReason::LoginTimeout) => return CloseReason::ServerTimeout,
            Err(reason) => return reason,
        };
        let _fd_guard = self.control.register_upstream_fd(server.stream.raw_fd());
        self.opened();
        let _open = self.cluster.and_then(|cluster| cluster.link_opened(member));
        let received = Buffer::take(Size::Small);
        let reason = relay(server, local, received, ClientSide::Plain, self.control).await;
        reason.swap_sides()
    }

    /// Notes whether the member at this position accepts the name of this one. Other failures say nothing about that.
    fn note_answer(&self, member: usize, failure: Option<&CloseReason>) {
        let names = &self.links.state.member_names;
        match failure {
            None => names.accepted_by(member),
            Some(CloseReason::Link(LinkError::Refused(LinkRefusal::MemberConflict))) => {
                names.refused_by(member, Instant::now());
            }
            Some(_) => {}
        }
    }

    fn opened(&self) {
        self.control.login_done();
        if let Some(links) = &self.context.links {
            let bytes = self.info.borrow_mut().link_opened(&links.metrics);
            let count = |bytes| self.control.link_opened(bytes);
            bytes.into_iter().for_each(count);
        }
    }

    /// Connects to the member and opens the link. If that fails, the member may have moved: it is looked up again,
    /// and another address is tried once.
    async fn connect(
        &self,
        resolver: &Arc<TargetResolver>,
        destination: Destination<'_>,
    ) -> Result<(Server, BoundName), CloseReason> {
        let lookup = self.lookup(resolver, None);
        let target = self.control.race_terminated(lookup).await??;
        let reason = match self.open(&target, destination).await {
            Ok(opened) => return Ok(opened),
            // The answer of the verified member, or our own: it has not moved.
            Err(reason @ (CloseReason::Link(_) | CloseReason::LinkRefused(_))) => {
                return Err(reason);
            }
            Err(reason) => reason,
        };
        let lookup = self.lookup(resolver, Some(Arc::clone(&target)));
        match self.control.race_terminated(lookup).await? {
            Ok(other) if *other != *target => self.open(&other, destination).await,
            Ok(_) | Err(_) => Err(reason),
        }
    }

    async fn lookup(
        &self,
        resolver: &Arc<TargetResolver>,
        failed: Option<Arc<Target>>,
    ) -> Result<Arc<Target>, CloseReason> {
        if let Some(target) = resolver.cached(failed.as_ref()) {
            return Ok(target);
        }
        let jobs = &self.links.jobs;
        match jobs.request(|done| resolver.lookup(failed, done)).await {
            Ok(target) => target.map_err(CloseReason::Target),
            Err(_) => Err(CloseReason::Target(TargetError::Overloaded)),
        }
    }

    async fn open(
        &self,
        target: &Target,
        destination: Destination<'_>,
    ) -> Result<(Server, BoundName), CloseReason> {
        let stream = self.dial(target).await?;
        limit_unacknowledged(&stream, destination.service);
        let _fd_guard = self.control.register_upstream_fd(stream.raw_fd());
        let (mut server, handshake) = self.connect_tls(stream, target).await?;
        if !handshake.is_link {
            return Err(CloseReason::LinkNotSupported);
        }
        let instance = self.attest(handshake).await?;
        let boot_id = self.request(&mut server, destination).await?;
        let bound = self.links.bind(destination.member, instance, boot_id)?;
        Ok((server, bound))
    }

    /// Connects to the first address of the member that accepts.
    async fn dial(&self, target: &Target) -> Result<Stream, CloseReason> {
        let mut last_error = std::io::ErrorKind::AddrNotAvailable.into();
        for address in &target.addresses {
            let deadline = Instant::now() + CONNECT_TIMEOUT;
            let deadline = deadline.min(self.control.login_deadline());
            match Stream::dial(&PgAddress::Tcp(*address), deadline).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            }
            if let Some(reason) = self.control.terminate_reason() {
                return Err(reason.into());
            }
        }
        Err(CloseReason::ServerUnreachable(target.name(), last_error))
    }

    async fn connect_tls(
        &self,
        stream: Stream,
        target: &Target,
    ) -> Result<(Server, HandshakeSummary), CloseReason> {
        let snapshot = self.live.read();
        let config = snapshot.link.as_ref().ok_or(LinkRefusal::NotReady)?;
        let connection = UnbufferedClientConnection::new(Arc::clone(config), target.server.clone())
            .map_err(|error| CloseReason::ServerTls(error.into()))?;
        let fd = stream.raw_fd();
        let session = Session::new(connection);
        let mut server = TlsStream::new(stream, session, Buffer::take(Size::Small));
        let handshake = server.handshake(&self.context.handshake_queue, self.control);
        let (result, in_time) = shut_down_after(CONNECT_TIMEOUT, fd, handshake).await;
        let summary = result.map_err(|error| self.server_failed(error, in_time))?;
        self.info.borrow_mut().tls = summary.version;
        Ok((server, summary))
    }

    fn server_failed(&self, error: StreamError, in_time: bool) -> CloseReason {
        self.control.or_terminated(match error {
            _ if !in_time => CloseReason::HandshakeTimeout(CONNECT_TIMEOUT),
            StreamError::Eof => CloseReason::ServerHungUp,
            StreamError::Io(error) => CloseReason::ServerIo(error),
            // A member has no certificate for a link to another name than its own.
            StreamError::Tls(TlsError::Rustls(rustls::Error::AlertReceived(
                AlertDescription::AccessDenied,
            ))) => CloseReason::LinkWrongMember,
            StreamError::Tls(TlsError::Rustls(rustls::Error::AlertReceived(
                AlertDescription::NoApplicationProtocol,
            ))) => CloseReason::LinkNotSupported,
            StreamError::Tls(error) => CloseReason::ServerTls(error),
        })
    }

    /// Verifies that the server is a member. Returns the instance that it is.
    async fn attest(&self, handshake: HandshakeSummary) -> Result<InstanceId, CloseReason> {
        let gate = self.links.gate(self.context)?;
        let verdict = gate.admit(handshake.chain.as_deref(), || self.control.begin_work());
        let verdict = self.control.race_terminated(verdict).await?;
        let attested = verdict.map_err(|denial| match denial {
            denial if is_no_member(&denial) => CloseReason::NotAMember(denial),
            denial => server_denied(denial),
        })?;
        let peer = attested.peer().ok_or(Denial::NoEvidence);
        let peer = peer.map_err(server_denied)?;
        if let Some(link) = &mut self.info.borrow_mut().link {
            link.instance = peer.instance_id();
        }
        self.control.set_peer(Some(Arc::clone(peer)));
        instance_of(peer)
    }

    /// Requests the link and waits for the answer. Returns the boot id of the member.
    async fn request(
        &self,
        server: &mut Server,
        destination: Destination<'_>,
    ) -> Result<BootId, CloseReason> {
        let request = LinkRequest {
            from: self.links.own_name(),
            to: destination.member,
            service: destination.service.name,
            boot_id: self.links.state.boot_id,
        };
        let mut frame = Vec::new();
        let mut await_answer = request_link(&request, &mut frame);
        let sent = server.send(&frame).await;
        sent.map_err(|error| self.server_failed(error, true))?;
        loop {
            match await_answer.advance(server.plain.filled()) {
                LinkAnswerStep::Read(next) => await_answer = next,
                LinkAnswerStep::Opened { boot_id, consumed } => {
                    server.plain.consume(consumed);
                    return Ok(boot_id);
                }
                LinkAnswerStep::Refuse(LinkError::Refused(LinkRefusal::WrongMember)) => {
                    return Err(CloseReason::LinkWrongMember);
                }
                LinkAnswerStep::Refuse(error) => return Err(error.into()),
            }
            server.read_more().await.map_err(|error| match error {
                StreamError::Eof => self.control.or_terminated(LinkError::EarlyEof.into()),
                error => self.server_failed(error, true),
            })?;
        }
    }
}

fn server_denied(denial: Denial) -> CloseReason {
    CloseReason::ServerDenied {
        denial,
        allow_simulator: false,
    }
}
