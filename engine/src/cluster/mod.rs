//! Layer 4: the role of this member of a cluster: what Patroni and Postgres say, and the view that follows.
//!
//! The watcher ([`crate::tasks::role_watch`]) asks both; [`role_state`] decides, without I/O and with the time as an
//! argument; [`state`] publishes the decision to shards and tasks. No other code may decide who leads. [`member_names`]
//! keeps two VMs from having one member's name.

pub(crate) mod carried;
pub(crate) mod etcd;
pub(crate) mod member_names;
pub(crate) mod patroni;
pub(crate) mod role_state;
pub(crate) mod state;
pub(crate) mod view;
