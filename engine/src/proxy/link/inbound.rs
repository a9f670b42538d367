//! The accepting side of a link: the verdict on the peer, the request, the peer's name, the dial of the service, the
//! answer.
//!
//! TLS is established already, with the ALPN protocol of links. No byte of the request is read before the peer is
//! known to be a member, and a peer that is none does not learn which services there are. The service is dialled only
//! for a member whose name belongs to its VM.

use std::cell::RefCell;
use std::sync::Arc;

use attest::Denial;
use attest::denial::Fault;
use attest::values::InstanceId;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use wire::link::{AwaitRequest, LinkRefusal, LinkRequest, LinkRequestStep, PendingLink};

use super::{Links, dial_service, instance_of, is_no_member, limit_unacknowledged};
use crate::cluster::member_names::BoundName;
use crate::config::Service;
use crate::io::buffer::{Buffer, Size};
use crate::proxy::upstream::UpstreamSession;
use crate::session::control::ConnectionControl;
use crate::session::tls_stream::TlsStream;
use crate::shard::connection_limit::{ConnectionPermit, LimitReached};
use crate::shard::handler::HandlerContext;
use crate::telemetry::audit::queue::fingerprint;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::link_info::LinkDirection;
use crate::tls::session::HandshakeSummary;

type Peer = TlsStream<UnbufferedServerConnection>;

/// One link that a peer opens.
pub(crate) struct AcceptedLink<'a> {
    pub(crate) context: &'a HandlerContext,
    /// `None` if this sidecar belongs to no cluster. It then offers no links, and accepts none.
    pub(crate) links: Option<&'a Links>,
    pub(crate) permit: &'a ConnectionPermit,
    pub(crate) control: &'a ConnectionControl,
    pub(crate) info: &'a RefCell<ConnectionInfo>,
}

impl AcceptedLink<'_> {
    /// Handles everything from the TLS handshake to the answer. If the link is refused, the peer has received the
    /// answer already. What is returned with the session keeps the peer's name for as long as the link is open.
    pub(crate) async fn accept(
        &self,
        peer: &mut Peer,
        handshake: HandshakeSummary,
    ) -> Result<(UpstreamSession, BoundName), CloseReason> {
        self.control.set_link();
        let shard_metrics = &self.context.shard_metrics;
        self.info.borrow_mut().is_accepted_link(shard_metrics);
        match self.open(peer, handshake).await {
            Ok(opened) => Ok(opened),
            Err(reason) => Err(self.refuse(peer, reason).await),
        }
    }

    async fn open(
        &self,
        peer: &mut Peer,
        handshake: HandshakeSummary,
    ) -> Result<(UpstreamSession, BoundName), CloseReason> {
        let links = self.links.ok_or(LinkRefusal::NotReady)?;
        let instance = self.attest(links, handshake.chain).await?;
        if !self.context.accepts_sessions() {
            return Err(CloseReason::AuditUnavailable);
        }
        let limit = self.permit.begin_link(LinkDirection::Accepted);
        limit.map_err(|LimitReached| LinkRefusal::TooManyLinks)?;
        let link = self.read_request(peer).await?;
        let bound = self.bind(links, instance, link.request())?;
        let service = links.state.cluster.service(&link.request().service);
        let service = service.ok_or(LinkRefusal::UnknownService)?;
        self.note_service(service);
        limit_unacknowledged(&peer.stream, service);
        let session = self.connect(links, peer, link, service).await?;
        Ok((session, bound))
    }

    /// Verifies that the peer is a member. Returns the instance that it is.
    async fn attest(
        &self,
        links: &Links,
        chain: Option<Vec<CertificateDer<'static>>>,
    ) -> Result<InstanceId, CloseReason> {
        let gate = links.gate(self.context)?;
        let verdict = gate.admit(chain.as_deref(), || self.control.begin_work());
        let verdict = self.control.race_terminated(verdict).await;
        let attested = match &verdict {
            Ok(Ok(attested)) => attested.peer().cloned(),
            Ok(Err(_)) | Err(_) => None,
        };
        let mut info = self.info.borrow_mut();
        let leaf = chain.as_ref().and_then(|chain| chain.first());
        if let (None, Some(audit), Some(leaf)) = (&attested, &mut info.audit, leaf) {
            audit.set_certificate(Some(fingerprint(leaf)));
        }
        let Some(attested) = attested else {
            return Err(match verdict {
                Ok(Err(denial)) if is_no_member(&denial) => CloseReason::NotAMember(denial),
                Ok(Err(denial)) => CloseReason::Denied(denial),
                // The deadline passes only while collateral is fetched.
                Err(CloseReason::LoginTimeout) => {
                    CloseReason::Denied(Denial::CollateralUnavailable)
                }
                Err(reason) => reason,
                // This gate admits no peer without evidence.
                Ok(Ok(_)) => CloseReason::Denied(Denial::NoEvidence),
            });
        };
        info.attested = true;
        if let Some(link) = &mut info.link {
            link.instance = attested.instance_id();
        }
        if let Some(audit) = &self.context.audit {
            audit.admitted(&mut info, Some(&attested));
        }
        let instance = instance_of(&attested);
        self.control.set_peer(Some(attested));
        instance
    }

    async fn read_request(&self, peer: &mut Peer) -> Result<PendingLink, CloseReason> {
        let mut await_request = AwaitRequest::new();
        loop {
            match await_request.advance(peer.plain.filled()) {
                LinkRequestStep::Read(next) => await_request = next,
                LinkRequestStep::Requested { link, consumed } => {
                    peer.plain.consume(consumed);
                    return Ok(link);
                }
                LinkRequestStep::Refuse(error) => return Err(error.into()),
            }
            let read = peer.read_more().await;
            read.map_err(|error| error.into_close_reason(self.control))?;
        }
    }

    /// Checks that this member is meant, and binds the peer's name to its VM.
    fn bind(
        &self,
        links: &Links,
        instance: InstanceId,
        request: &LinkRequest,
    ) -> Result<BoundName, CloseReason> {
        if request.to != links.own_name() {
            return Err(LinkRefusal::WrongMember.into());
        }
        let bound = links.bind(request.from, instance, request.boot_id)?;
        // Only names from the configuration: what is logged about links is limited by name.
        let position = links.state.cluster.position(&request.from);
        let name = position.and_then(|position| links.state.names.get(position));
        if let Some(link) = &mut self.info.borrow_mut().link {
            link.member = name.map(Arc::clone);
        }
        Ok(bound)
    }

    fn note_service(&self, service: &Service) {
        if let Some(link) = &mut self.info.borrow_mut().link {
            link.service = Some(service.name);
        }
    }

    /// Connects to the service and sends the answer.
    async fn connect(
        &self,
        links: &Links,
        peer: &mut Peer,
        link: PendingLink,
        service: &Service,
    ) -> Result<UpstreamSession, CloseReason> {
        let control = self.control;
        let stream = dial_service(service, control).await;
        let stream = stream
            .map_err(|error| control.or_terminated(CloseReason::LinkServiceUnreachable(error)))?;
        let mut answer = Vec::new();
        link.accept(links.state.boot_id, &mut answer);
        let sent = peer.send(&answer).await;
        sent.map_err(|error| error.into_close_reason(control))?;
        if let Some(links) = &self.context.links {
            let mut info = self.info.borrow_mut();
            let bytes = info.link_opened(&links.metrics);
            bytes
                .into_iter()
                .for_each(|bytes| control.link_opened(bytes));
            if let Some(audit) = &self.context.audit {
                audit.link_granted(&info, control.peer().as_deref());
            }
        }
        Ok(UpstreamSession {
            stream,
            received: Buffer::take(Size::Small),
        })
    }

    /// Sends the answer, and gives the peer time to read it.
    async fn refuse(&self, peer: &mut Peer, reason: CloseReason) -> CloseReason {
        self.control.start_closing();
        if matches!(reason, CloseReason::TooManyUnattested) {
            return reason;
        }
        if let Some(refusal) = answer_to(&reason) {
            let mut answer = Vec::new();
            refusal.encode(&mut answer);
            if peer.send(&answer).await.is_err() {
                return reason;
            }
        }
        peer.close().await;
        peer.stream.linger().await;
        reason
    }
}

/// The answer to a peer whose link is refused; `None` if the connection ends without one.
fn answer_to(reason: &CloseReason) -> Option<LinkRefusal> {
    match reason {
        CloseReason::LinkRefused(refusal) => Some(*refusal),
        CloseReason::LinkRequest(error) => Some(error.answer()),
        CloseReason::LinkServiceUnreachable(_) => Some(LinkRefusal::ServiceUnreachable),
        CloseReason::MemberConflict(_) => Some(LinkRefusal::MemberConflict),
        CloseReason::Denied(denial) if denial.fault() == Fault::Ours => Some(LinkRefusal::NotReady),
        CloseReason::AuditUnavailable => Some(LinkRefusal::NotReady),
        CloseReason::Denied(_)
        | CloseReason::NotAMember(_)
        | CloseReason::NoInstanceId
        | CloseReason::Revoked(_) => Some(LinkRefusal::NotAMember),
        CloseReason::Shutdown => Some(LinkRefusal::Draining),
        _ => None,
    }
}
