//! The messages in a shard's mailbox.

use crate::io::offload::JobResult;
use std::sync::Arc;

use crate::io::peer::Peer;
use crate::io::stream::DetachedStream;
use crate::io::target::Target;
use crate::shard::balancer::ShardAssignment;
use crate::shard::sessions::SessionsRequest;

/// A message from another thread to a shard.
pub(crate) enum Message {
    /// An offloaded job has completed.
    JobDone(JobResult),
    /// Accept no more connections; return when the last one has ended.
    Drain,
    /// The drain timeout is over: end all connections.
    TerminateAll,
    /// Policy or collateral has changed: check every session again.
    Revalidate,
    /// A forwarder follows the leader of a cluster, which is this server now.
    LeaderChanged(Arc<Target>),
    /// Logins of the cluster are routed differently, or sessions have to end.
    ClusterChanged(ClusterChange),
    /// An operator asks for the connections, or ends some.
    Sessions(SessionsRequest),
    /// Serve this connection, which another shard has accepted.
    HandOff(HandedOff),
    /// Open a link for this local connection.
    OpenLink(HandedOff, LinkRoute),
}

/// Where a link leads to, by the positions in the configuration of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkRoute {
    pub(crate) member: usize,
    pub(crate) service: usize,
}

/// What decides which sessions may continue when the cluster changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClusterChange {
    /// This member may not take writes.
    pub(crate) fenced: bool,
    /// Sessions that were carried in an earlier term have to end.
    pub(crate) term: u64,
}

/// An accepted connection that is sent to the shard that serves it.
pub(crate) struct HandedOff {
    pub(super) stream: DetachedStream,
    pub(super) peer: Peer,
    pub(super) assignment: ShardAssignment,
}
