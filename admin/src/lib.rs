//! The sidecar's HTTP surface: `/health`, `/ready`, `/attestation` and `/metrics`.
//!
//! Whoever reaches the port may ask, so everything here is bounded: bytes, waits, connections, and
//! above all quotes, of which the machine makes about 25 a second and needs some for itself. A
//! connection gets one answer and is closed, so that nothing that hides behind a request is ever
//! answered.
//!
//! This crate knows nothing of the product's other parts. They set [`Latch`]es, and answer as a
//! [`Source`].

#![forbid(unsafe_code)]

mod connection_slots;
mod nonce;
mod quote_limiter;
mod readiness;
mod reports;
mod response;
mod route;
mod router;
mod server;
mod settings;
mod source;
mod stats;

pub use nonce::{Nonce, NonceError};
pub use readiness::{Latch, Readiness};
pub use route::Route;
pub use server::{Server, start};
pub use settings::Settings;
pub use source::{ReportFuture, Source, Unavailable};
pub use stats::{Stats, StatusClass};
