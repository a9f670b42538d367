//! `teesql-sidecar dev --members N`: a whole cluster with Patroni and etcd on this machine, in which a member can be
//! killed.
//!
//! The members use the same ports of loopback, as they do on separate machines, so each has a network namespace. The
//! outer process ([`outer`]) makes the namespaces of the whole and serves its ports on this machine; the inner one
//! ([`inner`]) runs the members in them. All namespaces end with their last process: nothing is left behind even if the
//! outer process is killed.

mod address;
mod clock;
mod control;
mod files;
mod forwarder;
mod inner;
mod member;
mod name_server;
mod namespace;
mod outer;
mod process;
mod publish;
mod text;
mod world;

pub(super) use control::request;
pub(super) use inner::run as run_inner;
pub(super) use outer::run as run_outer;

/// How a cluster is made.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The number of members.
    pub(super) members: usize,
    /// Patroni and Postgres talk to each other directly, without sidecars: the baseline of measurements.
    pub(super) plain: bool,
    /// The members archive WAL and keep backups with pgBackRest.
    pub(super) backups: bool,
    /// Each member has its own clock, which can be set off.
    pub(super) clocks: bool,
    /// The leader publishes its manifest on a name server, and a second forwarder follows it.
    pub(super) dns: bool,
}
