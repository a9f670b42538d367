//! Layer 5: background tasks of the control thread.
//!
//! They may wait for the network or the guest agent, which a shard must never do.

pub(crate) mod audit_watch;
pub(crate) mod certificate_renewal;
pub(crate) mod clock_watch;
pub(crate) mod coalesced_sleep;
pub(crate) mod collateral_refresh;
pub(crate) mod discovery;
pub(crate) mod etcd_leader;
pub(crate) mod leader_watch;
mod local_http;
pub(crate) mod manifest_publisher;
pub(crate) mod own_evidence;
pub(crate) mod role_repair;
pub(crate) mod role_watch;
pub(crate) mod socket_choice;
pub(crate) mod upstream_probe;
pub(crate) mod upstream_version;
