//! Tests of `teesql-forward`, which accepts plaintext PostgreSQL connections and forwards them over
//! mutual RA-TLS, and must not send a byte of the driver to a server that is not attested. Both sides
//! have certificates of the mock TDX; the server is a sidecar in production mode in front of a real
//! Postgres.

mod child_command;
mod client_certificate;
mod dns;
mod drivers;
mod embedded;
mod follow;
mod leader_manifest;
mod lifecycle;
mod published_leader;
mod server_attestation;
mod several_targets;
mod trust_authority;

use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    drivers::add(suite);
    server_attestation::add(suite);
    lifecycle::add(suite);
    if suite.adds_driver_independent() {
        child_command::add(suite);
        client_certificate::add(suite);
        trust_authority::add(suite);
        dns::add(suite);
        leader_manifest::add(suite);
        embedded::add(suite);
        follow::add(suite);
        published_leader::add(suite);
        several_targets::add(suite);
    }
}
