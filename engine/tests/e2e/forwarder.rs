//! `teesql-forward`: plain PostgreSQL in, mutual RA-TLS out, and not a byte to a
//! server that did not prove itself. Certificates of the mock TDX on both sides,
//! a sidecar in production mode, and a real Postgres behind it.

mod child_command;
mod client_certificate;
mod dns;
mod drivers;
mod embedded;
mod leader_manifest;
mod lifecycle;
mod server_attestation;
mod trust_authority;

use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    drivers::add(suite);
    server_attestation::add(suite);
    lifecycle::add(suite);
    if suite.is_last_driver() {
        child_command::add(suite);
        client_certificate::add(suite);
        trust_authority::add(suite);
        dns::add(suite);
        leader_manifest::add(suite);
        embedded::add(suite);
    }
}
