//! The engine of TeeSQL's sidecar and forwarder: TLS in, a PostgreSQL login injected,
//! bytes relayed, on one shard per core.
//!
//! The folders are layers. A file imports from lower layers and from its own layer only;
//! `tests/layers` checks this.
//!
//! | Layer | Folders | Contents |
//! | --- | --- | --- |
//! | 8 | `cli` | commands that run once |
//! | 7 | `app` | a process from its configuration to its exit |
//! | 6 | `proxy` | one connection from its first byte to its last |
//! | 5 | `shard`, `tasks` | one thread and its connections; background work of the control thread |
//! | 4 | `session`, `attestation`, `cluster` | an established connection; the decision whether a peer is admitted; who leads the cluster |
//! | 3 | `telemetry` | metrics, the log, reason codes |
//! | 2 | `config` | settings, from flags, environment and TOML |
//! | 1 | `tls`, `sched`, `postgres` | TLS, scheduling within a shard, the superuser's client |
//! | 0 | `io`, `auth` | sockets, buffers, threads; roles, secrets, passwords |
//!
//! A shard must never block, take a lock that another thread holds for long, or compute for
//! more than about 100 µs. A read or write must never be dropped before it has completed.
#![deny(unsafe_code)]

pub mod app;
mod attestation;
pub mod auth;
pub mod cli;
mod cluster;
pub mod config;
pub mod io;
pub mod postgres;
pub mod proxy;
mod sched;
mod session;
mod shard;
mod tasks;
pub mod telemetry;
pub mod tls;

pub use app::embed;
pub use app::error::StartError;
pub use app::forwarder::Forwarder;
