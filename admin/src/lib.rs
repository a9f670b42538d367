//! The HTTP server for operators: `/health`, `/ready`, `/attestation`, `/metrics`, the role of a
//! cluster's member, and the status page.
//!
//! The port is unauthenticated, so everything here is bounded: bytes, waits, connections, and above
//! all quotes. The machine makes about 25 quotes per second and needs some of them for itself. Each
//! connection gets one response and is closed, so that a request smuggled in after the first one is
//! never answered.
//!
//! This crate must not depend on the product's other crates. They set [`Latch`]es and implement
//! [`Source`].

#![forbid(unsafe_code)]

mod connection_slots;
mod endpoints;
mod nonce;
mod page;
mod readiness;
mod report_queue;
mod reports;
mod response;
mod role;
mod route;
mod router;
mod server;
mod settings;
mod source;
mod stats;
pub mod status;

pub use nonce::{Nonce, NonceError};
pub use readiness::{Latch, Readiness};
pub use report_queue::source_of;
pub use role::{ClusterStatus, Role};
pub use route::Route;
pub use server::{Server, start};
pub use settings::Settings;
pub use source::{ReportFuture, Source, Unavailable};
pub use stats::{Stats, StatusClass};
