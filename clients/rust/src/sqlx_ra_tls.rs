//! The names of the crate sqlx-ra-tls 0.4, over this crate's forwarder: `use teesql::sqlx_ra_tls` instead of
//! `use sqlx_ra_tls`.
//!
//! What differs, and is stricter: the quote of every connection must belong to the key of the server's certificate, whatever
//! the verifier says; the event log must replay to RTMR3; and a certificate that is about to expire is renewed. In new code
//! use [`Forwarder`](crate::Forwarder), whose policy also names the application: MRTD alone names an operating system image,
//! which other applications run, too.
//!
//! ```no_run
//! use std::sync::Arc;
//! use teesql::sqlx_ra_tls::{DcapVerifier, RaTlsOptions, pg_connect_opts_ra_tls};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = RaTlsOptions {
//!     allowed_mrtds: vec![std::env::var("EXPECTED_MRTD")?],
//!     ..Default::default()
//! };
//! let dsn = std::env::var("DATABASE_URL")?;
//! let options = pg_connect_opts_ra_tls(&dsn, Arc::new(DcapVerifier::new()), options).await?;
//! let pool = sqlx::postgres::PgPoolOptions::new().connect_with(options).await?;
//! # Ok(())
//! # }
//! ```

pub mod cert;
pub mod connector;
pub mod dstack;
mod error;
pub mod forwarder;
mod native;
mod options;
pub mod types;
pub mod verifiers;

pub use cert::{OID_ATTESTATION, OID_TDX_QUOTE, extract_tdx_quote};
pub use connector::{RaTlsOptions, VerifiedServer, pg_connect_opts_ra_tls, verify_server};
pub use dstack::{DSTACK_SIMULATOR_ENV, DstackClientCert, get_dstack_client_cert};
pub use error::Error;
pub use forwarder::RaTlsForwarder;
pub use types::{
    RaTlsVerifier, VerificationResult, VerifyError, VerifyOptions, expected_report_data_for_pubkey,
};
pub use verifiers::{DEFAULT_PCCS_URL, DcapVerifier, IntelApiVerifier, NoopVerifier};
