//! `teesql-forward`: plain PostgreSQL in, mutual RA-TLS out, and not a byte to a
//! server that did not prove itself. Certificates of the mock TDX on both sides,
//! a sidecar in production mode, and a real Postgres behind it.

mod authority;
mod command;
mod embedded;
mod identity;
mod lab;
mod leader;
mod life;
mod name_server;
mod names;
mod recorder;
mod refusals;
mod run;
mod through;

use crate::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    through::add(suite);
    refusals::add(suite);
    life::add(suite);
    if suite.plays_the_rest() {
        command::add(suite);
        identity::add(suite);
        authority::add(suite);
        names::add(suite);
        leader::add(suite);
        embedded::add(suite);
    }
}
