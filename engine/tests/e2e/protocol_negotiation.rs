//! Protocol versions and options: the client is told before it is asked for its
//! password, and told what this very Postgres speaks.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::Server;
use crate::harness::fake_server::{Fake, read_message, read_startup, welcome};
use crate::harness::message::{PROTOCOL_3_0, PROTOCOL_3_2, be32, startup, tagged};
use crate::harness::process::{PATIENCE, poll};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Need, Suite, World};
use crate::harness::{READ_SECRET, Verifier};

/// What PostgreSQL 19's betas send on purpose.
const GREASE: u32 = 0x0003_270f;

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.stage().servers() {
        let label = server.label();
        suite.add(&format!("negotiation::{label}"), move |world| {
            versions(world, &server)
        });
    }
    suite.add("negotiation::as_postgres_itself", as_postgres_itself);
    suite.add(
        "negotiation::options_are_not_forwarded",
        options_are_not_forwarded,
    );
    suite.add_with(
        &[Need::Pg18],
        "negotiation::postgres_is_upgraded",
        postgres_is_upgraded,
    );
}

fn versions(world: &World, server: &Server) {
    let sidecar = world.sidecar_for(server, Verifier::Scram);
    let newest = server.protocol();
    let option = ("_pq_.test_protocol_negotiation", "");
    let odd = ("_pq_.", "x");
    for (version, options) in [
        (PROTOCOL_3_0, vec![]),
        (PROTOCOL_3_0, vec![option]),
        (0x0003_0001, vec![]),
        (PROTOCOL_3_2, vec![]),
        (PROTOCOL_3_2, vec![option, odd]),
        (0x0003_0003, vec![]),
        (GREASE, vec![]),
        (GREASE, vec![option]),
        (0x0003_ffff, vec![odd, option, odd]),
    ] {
        let case = format!("{version:#x} {options:?}");
        let mut client = world.client(sidecar.address());
        let mut parameters = vec![("user", "teesql_read")];
        parameters.extend(&options);
        parameters.push(("database", "via_scram"));
        let greeting = client.start_with(version, &parameters);
        let names: Vec<String> = options.iter().map(|(name, _)| (*name).to_owned()).collect();
        let told = version > newest || !names.is_empty();
        assert_eq!(
            greeting.negotiation,
            told.then(|| (version.min(newest), names)),
            "{case}"
        );
        let greeting = client
            .give(READ_SECRET, greeting)
            .expect("the login succeeds");
        let key = if version.min(newest) >= PROTOCOL_3_2 {
            32
        } else {
            4
        };
        assert_eq!(greeting.key.len(), key, "{case}");
        assert_eq!(client.ask("select 1"), "1", "{case}");
        client.quit();
    }
}

/// The sidecar's NegotiateProtocolVersion is, byte for byte, the one of the
/// Postgres behind it.
fn as_postgres_itself(world: &World) {
    let options = [
        ("user", "teesql_read"),
        ("database", "via_scram"),
        ("_pq_.a", "b"),
        ("_pq_.c", ""),
    ];
    for server in world.stage.servers() {
        let cluster = world.stage.cluster(&server, Verifier::Scram);
        let sidecar = world.sidecar_for(&server, Verifier::Scram);
        for version in [PROTOCOL_3_0, PROTOCOL_3_2, GREASE] {
            let packet = startup(version, &options);
            let mut direct = TcpStream::connect(cluster.address()).expect("Postgres accepts");
            direct.write_all(&packet).expect("Postgres reads");
            let (tag, body) = read_message(&mut direct).expect("an answer");
            assert_eq!(tag, b'v', "{} {version:#x}", server.label());
            let mut client = world.client(sidecar.address());
            client.send(&packet);
            let told = client.expect(b'v').body;
            assert_eq!(told, body, "{} {version:#x}", server.label());
        }
    }
}

fn options_are_not_forwarded(world: &World) {
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let record = seen.clone();
    let postgres = Fake::start(move |mut stream| {
        let packet = read_startup(&mut stream)?;
        if be32(&packet) == GREASE {
            return stream.write_all(&negotiate(PROTOCOL_3_0));
        }
        record.lock().expect("no panic while locked").push(packet);
        welcome(&mut stream)
    });
    let sidecar = Sidecar::start(&world.settings_for(&postgres.address().to_string()));
    let mut client = world.client(sidecar.address());
    let options: &[(&str, &str)] = &[
        ("_pq_.x", "y"),
        ("user", "teesql_read"),
        ("x", "y"),
        ("_pq_.z", ""),
        ("database", "d"),
    ];
    let greeting = client.start_with(PROTOCOL_3_2, options);
    client
        .give(READ_SECRET, greeting)
        .expect("the login succeeds");
    let packets = seen.lock().expect("no panic while locked").clone();
    let expected = [
        &PROTOCOL_3_0.to_be_bytes()[..],
        b"user\0teesql_read\0x\0y\0database\0d\0\0",
    ];
    assert_eq!(packets, [expected.concat()]);
}

fn negotiate(version: u32) -> Vec<u8> {
    tagged(b'v', &[version.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

/// A Postgres that speaks 3.0 is replaced by one that speaks 3.2, on the same
/// socket, and back: after a failed login at most, the sidecar knows.
fn postgres_is_upgraded(world: &World) {
    let new = world.stage.eighteen.as_ref().expect("the trial needs it");
    let path = world.stage.path("moving.sock");
    let sidecar = {
        link(world, &world.stage.installed, &path);
        Sidecar::start(&world.settings_for(path.to_str().expect("UTF-8")))
    };
    let negotiated = |server: &Server| {
        let newest = server.protocol();
        let expected = (newest < PROTOCOL_3_2).then(|| (newest, Vec::new()));
        let learnt = poll(PATIENCE, || {
            let mut client = Client::open(&world.stage, sidecar.address(), Opening::Raw);
            let parameters = [("user", "teesql_read"), ("database", "via_scram")];
            let greeting = client.start_with(PROTOCOL_3_2, &parameters);
            let told = greeting.negotiation.clone();
            let entered = client.give(READ_SECRET, greeting);
            (entered.is_ok() && told == expected).then_some(())
        });
        assert!(
            learnt.is_some(),
            "the sidecar does not learn that it is {}",
            server.label()
        );
    };
    negotiated(&world.stage.installed);
    link(world, new, &path);
    negotiated(new);
    link(world, &world.stage.installed, &path);
    negotiated(&world.stage.installed);
}

fn link(world: &World, server: &Server, path: &Path) {
    let _ = fs::remove_file(path);
    let socket = world.stage.cluster(server, Verifier::Scram).socket();
    symlink(socket, path).expect("a fresh link");
}
