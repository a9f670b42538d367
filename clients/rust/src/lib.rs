//! Connect to a TeeSQL database from any PostgreSQL driver, through an attested connection.
//!
//! A [`Forwarder`] listens on this machine and forwards each connection over mutual RA-TLS to a TeeSQL sidecar, but only
//! after that has proved by its TDX quote which code it runs. The driver behind it needs no TLS: it gets a DSN.
//!
//! ```no_run
//! # async fn example() -> Result<(), teesql::Error> {
//! let forwarder = teesql::Forwarder::from_env().start().await?;
//! println!("{}", forwarder.dsn()?); // postgresql://teesql_read:…@127.0.0.1:40123/postgres?sslmode=disable
//! forwarder.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! What this crate does to the process that it is part of: all forwarders share one control thread, one verification
//! thread and one thread for connections, which live while any forwarder lives. It installs no signal handler, no panic
//! hook and no global logger (events go to `tracing`), and changes no limit and no environment variable.
//!
//! Futures of this crate may be awaited on any executor. The main functions have a counterpart that blocks.
//!
//! Features: `sqlx` and `tokio-postgres` connect these drivers; with `sqlx`, the module `sqlx_ra_tls` has the names of the
//! crate sqlx-ra-tls.
//!
//! It must never let the check be skipped that the quote belongs to the key of the server's certificate: no verifier, no
//! policy and no setting turns it off while quotes are verified at all.

#![forbid(unsafe_code)]

#[cfg(feature = "bindings")]
#[doc(hidden)]
pub mod bindings;
mod forwarder;
mod identity;
mod leader;
mod policy;
#[cfg(feature = "sqlx")]
pub mod sqlx_ra_tls;
mod verify;

pub use engine::embed::{
    Acceptance, BoxFuture, Claims, ClientCertificate, Error, ErrorKind, Evidence, Failure,
    Manifest, Refusal, Verified, Verifier, bound_quote, certificates_from_pem,
    expected_report_data, extract_tdx_quote, fingerprint, read_quote, reason_codes,
    request_client_certificate, server_of_leader_url, verifier_fn,
};
pub use forwarder::{Builder, Forwarder};
pub use identity::Identity;
pub use leader::{
    LeaderOptions, ManifestSigner, parse_manifest, query_manifest_records, resolve_leader,
    resolve_leader_blocking,
};
pub use policy::Policy;
pub use verify::{
    ServerOptions, server_certificates, verify, verify_blocking, verify_certificate, verify_server,
    verify_server_blocking,
};
