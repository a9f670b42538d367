//! Tests of a Postgres that restarts while fifty clients are connected.

use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::is_long_run;
use crate::harness::client::Client;
use crate::harness::cluster::ClusterOptions;
use crate::harness::fixture::Fixture;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::postgres_restart::fifty_clients_reconnect",
        fifty_clients_reconnect,
    );
}

const CLIENTS: usize = 50;

fn connect_all(tdx: &TdxFixture, sidecar: &Sidecar) -> Vec<Client> {
    thread::scope(|scope| {
        let connect = || tls::session(Some(tdx), sidecar);
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(connect)).collect();
        let clients = threads.into_iter().map(thread::ScopedJoinHandle::join);
        clients
            .map(|client| client.expect("the login succeeds"))
            .collect()
    })
}

fn fifty_clients_reconnect(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    let settings = tdx.with_agent(fixture.settings_for(&cluster.address().to_string()));
    let sidecar = Sidecar::start(&settings);
    let address = sidecar.admin_address();
    http::await_ready(address);
    let sockets = sidecar.settled_sockets();
    for how in [Signal::SIGINT, Signal::SIGQUIT] {
        let clients = connect_all(&tdx, &sidecar);
        cluster.stop(how);
        for mut client in clients {
            // Postgres may send an error first.
            while client.read().is_ok() {}
        }
        http::await_unready(address, "postgres", "Postgres does not answer");
        cluster.start();
        let restarted = Instant::now();
        // The first client connects: the sidecar does not back off once Postgres is available.
        let mut first = tls::session(Some(&tdx), &sidecar);
        let took = restarted.elapsed();
        assert_eq!(first.query_value("select 'back'"), "back");
        first.terminate();
        if is_long_run() {
            eprintln!("{}: {how}: back after {took:?}", fixture.variant.driver);
        }
        for client in connect_all(&tdx, &sidecar) {
            client.terminate();
        }
        http::await_ready(address);
    }
    sidecar.await_sockets(sockets);
}
