//! What a program uses that has this crate as a library: forwarders, verification and the leader manifest, for the client
//! packages of Rust, Python and Node.
//!
//! Such a program is a guest's host: this module installs no signal handler, no panic hook and no global logger, changes
//! no limit and no environment variable, and what it has started is gone when it is stopped. All forwarders of a process
//! share their threads (`runtime`). Futures work on any executor, since they only wait for those threads.
//!
//! After a `fork` the child has none of the threads. It must never wait for them, nor take a lock that they may have held.

mod error;
mod forwarder;
mod leader;
mod options;
pub(crate) mod runtime;
mod verification;

pub use crate::attestation::custom::{
    Acceptance, BoxFuture, Claims, DEFAULT_TIMEOUT, Evidence, Refusal, Verifier, verifier_fn,
};
pub use crate::io::block_on::block_on;
pub use crate::telemetry::failures::Failure;
pub use error::{Error, ErrorKind, reason_codes};
pub use forwarder::Forwarder;
pub use leader::{
    LeaderQuery, Manifest, parse_address, parse_manifest, query_manifest_records, resolve_leader,
    server_of_leader_url,
};
pub use options::{ApplicationVerifier, ClientCertificate, Options, request_client_certificate};
pub use verification::{
    ServerProbe, Verified, bound_quote, certificates_from_pem, expected_report_data,
    extract_tdx_quote, fingerprint, read_quote, server_certificates, verify_certificate,
    verify_quote, verify_quote_with_collateral, verify_server,
};
