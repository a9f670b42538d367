//! Postgres is restarted under fifty clients.

use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::{Town, admin};
use crate::harness::client::Client;
use crate::harness::cluster::Plan;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Suite, World};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::postgres_restarts_under_fifty_clients", restarts);
}

const CLIENTS: usize = 50;

fn crowd(town: &Town, sidecar: &Sidecar) -> Vec<Client> {
    thread::scope(|scope| {
        let enter = || tls::enter(Some(town), sidecar);
        let entering: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(enter)).collect();
        let clients = entering.into_iter().map(thread::ScopedJoinHandle::join);
        clients.map(|client| client.expect("it enters")).collect()
    })
}

fn restarts(world: &World) {
    let town = Town::new();
    let _agent = town.agent();
    let plan = Plan {
        databases: vec!["via_scram"],
        ..Plan::default()
    };
    let cluster = world.stage.private_cluster(&world.stage.installed, &plan);
    let settings = town.with_agent(world.settings_for(&cluster.address().to_string()));
    let sidecar = Sidecar::start(&settings);
    let address = admin(&sidecar);
    http::await_ready(address);
    let quiet = sidecar.sockets_at_rest();
    for how in [Signal::SIGINT, Signal::SIGQUIT] {
        let clients = crowd(&town, &sidecar);
        cluster.stop(how);
        for mut client in clients {
            // Postgres says why, or has no time to.
            while client.read().is_ok() {}
        }
        http::await_unready(address, "postgres", "Postgres does not answer");
        cluster.start();
        let back = Instant::now();
        // The very first one enters: nothing backs off from a Postgres that is back.
        let mut first = tls::enter(Some(&town), &sidecar);
        let took = back.elapsed();
        assert_eq!(first.ask("select 'back'"), "back");
        first.quit();
        if super::long() {
            eprintln!("{}: {how}: back after {took:?}", world.driver);
        }
        for client in crowd(&town, &sidecar) {
            client.quit();
        }
        http::await_ready(address);
    }
    sidecar.await_sockets(quiet);
}
