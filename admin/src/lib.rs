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

mod answer;
mod desk;
mod endpoint;
mod nonce;
mod readiness;
mod reports;
mod seats;
mod server;
mod settings;
mod source;
mod stats;
mod surface;

pub use endpoint::Endpoint;
pub use nonce::{Nonce, NonceError};
pub use readiness::{Latch, Readiness};
pub use server::{Server, start};
pub use settings::Settings;
pub use source::{Reporting, Source, Unavailable};
pub use stats::{Class, Stats};
