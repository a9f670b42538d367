//! Links between the members of a cluster: attested TLS connections that carry connections to the other members'
//! services, such as etcd and Postgres (docs/reference/link-protocol.md).
//!
//! Services without attestation reach each other only through these. A link must never be opened to or
//! accepted from a peer that the policy for members does not admit, or whose name belongs to another VM, and never lead
//! to anything but a configured service.

pub(crate) mod inbound;
pub(crate) mod outbound;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::values::InstanceId;
use attest::{AttestedPeer, Denial};
use wire::link::{BootId, LinkRefusal, MemberName, ServiceName};

use crate::attestation::gate::{AttestingGate, Gate};
use crate::attestation::members::MemberVerifier;
use crate::cluster::member_names::{BoundName, Holder, MemberNames, NotBound};
use crate::config::{ClusterConfig, Service};
use crate::io::offload::{OffloadPool, PendingJobs};
use crate::io::stream::{PgAddress, Stream};
use crate::session::control::ConnectionControl;
use crate::shard::context::ShardContext;
use crate::shard::handler::{HandlerContext, LinkContext};
use crate::tasks::discovery::TargetResolver;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::link_metrics::LinkMetrics;
use crate::telemetry::metrics::Metrics;

/// The limit for each of the steps of a connection: to a service of this machine, to another member, and its TLS
/// handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long bytes of a link may stay unacknowledged. While some are, keepalive does not look for a member that has
/// vanished, and the kernel gives up after a quarter of an hour. For so long the member's name would belong to it.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);

/// What all shards of a member have in common for links.
pub(crate) struct LinkState {
    pub(crate) cluster: ClusterConfig,
    /// The members' names, by position.
    pub(crate) names: Vec<Arc<str>>,
    /// Where the other members are, by position. `None` for this one.
    pub(crate) resolvers: Vec<Option<Arc<TargetResolver>>>,
    /// What verifies members. `None` in a cluster of one member whose clients are not attested.
    pub(crate) members: Option<(Arc<MemberVerifier>, OffloadPool)>,
    /// Which VM has the name of which member.
    pub(crate) member_names: Arc<MemberNames>,
    /// That of this machine.
    pub(crate) boot_id: BootId,
    pub(crate) metrics: Arc<Metrics>,
}

/// Opens and accepts the links of one shard.
pub(crate) struct Links {
    state: Arc<LinkState>,
    jobs: PendingJobs,
}

impl LinkState {
    /// The names of all services.
    pub(crate) fn services(cluster: &ClusterConfig) -> Vec<ServiceName> {
        let services = cluster.services.iter();
        services.map(|service| service.name).collect()
    }

    /// What one shard needs.
    pub(crate) fn on_shard(self: &Arc<Self>, context: &ShardContext) -> (Links, LinkContext) {
        let gate = self.members.as_ref().map(|(members, verify_pool)| {
            Gate::attesting(AttestingGate::new(
                members.verifier(),
                verify_pool,
                &context.jobs,
                &context.shard_metrics,
                false,
            ))
        });
        let services = Self::services(&self.cluster);
        let links = Links {
            state: Arc::clone(self),
            jobs: context.jobs.clone(),
        };
        let metrics = LinkMetrics::new(&self.metrics, &services, context.shard);
        (links, LinkContext { gate, metrics })
    }
}

impl Links {
    /// The gate for members.
    ///
    /// # Errors
    /// It is not known yet who the members are.
    fn gate<'a>(&self, context: &'a HandlerContext) -> Result<&'a Gate, LinkRefusal> {
        let members = self.state.members.as_ref();
        let ready = members.is_some_and(|(members, _)| members.is_ready());
        let gate = context.member_gate().filter(|_| ready);
        gate.ok_or(LinkRefusal::NotReady)
    }

    /// The name of this member.
    fn own_name(&self) -> MemberName {
        self.state.cluster.own_member().name
    }

    /// Binds the name of the other member to its VM, while the link is open and for a time afterwards.
    ///
    /// # Errors
    /// The name belongs to another VM, or the VM has another name; or there are too many names.
    fn bind(
        &self,
        name: MemberName,
        instance: InstanceId,
        boot_id: BootId,
    ) -> Result<BoundName, CloseReason> {
        let holder = Holder { instance, boot_id };
        let names = &self.state.member_names;
        let bound = names.bind(name, holder, Instant::now());
        bound.map_err(|not_bound| match not_bound {
            NotBound::Conflict(conflict) => {
                CloseReason::MemberConflict(conflict.to_string().into())
            }
            NotBound::TooMany => LinkRefusal::TooManyLinks.into(),
        })
    }
}

/// The instance that a verified member is. Without an instance id a member's name cannot be bound.
fn instance_of(peer: &AttestedPeer) -> Result<InstanceId, CloseReason> {
    peer.instance_id().ok_or(CloseReason::NoInstanceId)
}

/// Lets a link end whose member has vanished. Not one to Postgres: its clients may leave results unread for as long as
/// they like, and the kernel counts a closed window as bytes that are not acknowledged. Postgres has its own timeouts
/// for replication.
fn limit_unacknowledged(stream: &Stream, service: &Service) {
    if !service.is_postgres() {
        // Without it the link only ends later.
        let _ = stream.set_user_timeout(UNACKNOWLEDGED_TIMEOUT);
    }
}

/// Connects to a service of this machine.
async fn dial_service(service: &Service, control: &ConnectionControl) -> io::Result<Stream> {
    let deadline = control.login_deadline();
    let deadline = deadline.min(Instant::now() + CONNECT_TIMEOUT);
    Stream::dial(&PgAddress::Tcp(service.local_address()), deadline).await
}

/// Whether a peer is refused for what it is, and not because its evidence is not genuine or out of date.
fn is_no_member(denial: &Denial) -> bool {
    matches!(
        denial,
        Denial::MrtdNotAllowed(_)
            | Denial::RtmrNotAllowed { .. }
            | Denial::AppNotAllowed(_)
            | Denial::ComposeHashNotAllowed(_)
            | Denial::InstanceNotAllowed(_)
            | Denial::OsImageHashNotAllowed(_)
            | Denial::KmsRootMismatch
            | Denial::PinNotAllowed(..)
            | Denial::Entry { .. }
    )
}
