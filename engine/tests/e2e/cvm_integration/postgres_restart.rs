//! Postgres is restarted under fifty clients.

use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::{TdxFixture, admin};
use crate::harness::client::Client;
use crate::harness::cluster::ClusterOptions;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::postgres_restarts_under_fifty_clients", restarts);
}

const CLIENTS: usize = 50;

fn crowd(tdx: &TdxFixture, sidecar: &Sidecar) -> Vec<Client> {
    thread::scope(|scope| {
        let enter = || tls::enter(Some(tdx), sidecar);
        let entering: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(enter)).collect();
        let clients = entering.into_iter().map(thread::ScopedJoinHandle::join);
        clients.map(|client| client.expect("it enters")).collect()
    })
}

fn restarts(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        ..ClusterOptions::default()
    };
    let cluster = fixture
        .harness
        .private_cluster(&fixture.harness.installed, &options);
    let settings = tdx.with_agent(fixture.settings_for(&cluster.address().to_string()));
    let sidecar = Sidecar::start(&settings);
    let address = admin(&sidecar);
    http::await_ready(address);
    let quiet = sidecar.sockets_at_rest();
    for how in [Signal::SIGINT, Signal::SIGQUIT] {
        let clients = crowd(&tdx, &sidecar);
        cluster.stop(how);
        for mut client in clients {
            // Postgres says why, or has no time to.
            while client.read().is_ok() {}
        }
        http::await_unready(address, "postgres", "Postgres does not answer");
        cluster.start();
        let back = Instant::now();
        // The very first one enters: nothing backs off from a Postgres that is back.
        let mut first = tls::enter(Some(&tdx), &sidecar);
        let took = back.elapsed();
        assert_eq!(first.ask("select 'back'"), "back");
        first.terminate();
        if super::long() {
            eprintln!("{}: {how}: back after {took:?}", fixture.driver);
        }
        for client in crowd(&tdx, &sidecar) {
            client.terminate();
        }
        http::await_ready(address);
    }
    sidecar.await_sockets(quiet);
}
