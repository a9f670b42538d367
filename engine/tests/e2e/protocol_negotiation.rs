//! Tests of protocol versions and options: the sidecar negotiates the newest version of its Postgres
//! before it requests the password.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::Server;
use crate::harness::fake_server::{FakeServer, accept_login, read_message, read_startup};
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, PROTOCOL_3_2, PROTOCOL_GREASE, be32, startup, tagged};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::{PasswordEncryption, READ_SECRET};

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        let label = server.label();
        suite.add(
            &format!("protocol_negotiation::versions::{label}"),
            move |fixture| versions(fixture, &server),
        );
    }
    suite.add(
        "protocol_negotiation::responds_like_postgres",
        responds_like_postgres,
    );
    suite.add(
        "protocol_negotiation::does_not_forward_options",
        does_not_forward_options,
    );
    suite.add_requiring(
        &[Requirement::Pg18],
        "protocol_negotiation::follows_postgres_upgrade",
        follows_postgres_upgrade,
    );
}

fn versions(fixture: &Fixture, server: &Server) {
    let sidecar = fixture.sidecar_for(server, PasswordEncryption::Scram);
    let newest = server.protocol();
    let option = ("_pq_.test_protocol_negotiation", "");
    let without_name = ("_pq_.", "x");
    for (version, options) in [
        (PROTOCOL_3_0, vec![]),
        (PROTOCOL_3_0, vec![option]),
        (0x0003_0001, vec![]),
        (PROTOCOL_3_2, vec![]),
        (PROTOCOL_3_2, vec![option, without_name]),
        (0x0003_0003, vec![]),
        (PROTOCOL_GREASE, vec![]),
        (PROTOCOL_GREASE, vec![option]),
        (0x0003_ffff, vec![without_name, option, without_name]),
    ] {
        let case = format!("{version:#x} {options:?}");
        let mut client = fixture.client(sidecar.address());
        let mut parameters = vec![("user", "teesql_read")];
        parameters.extend(&options);
        parameters.push(("database", "via_scram"));
        let response = client.start_with(version, &parameters);
        let names: Vec<String> = options.iter().map(|(name, _)| (*name).to_owned()).collect();
        let negotiated = version > newest || !names.is_empty();
        assert_eq!(
            response.negotiation,
            negotiated.then(|| (version.min(newest), names)),
            "{case}"
        );
        let response = client
            .authenticate(READ_SECRET, response)
            .expect("the login succeeds");
        let key = if version.min(newest) >= PROTOCOL_3_2 {
            32
        } else {
            4
        };
        assert_eq!(response.key.len(), key, "{case}");
        assert_eq!(client.query_value("select 1"), "1", "{case}");
        client.terminate();
    }
}

/// The sidecar's NegotiateProtocolVersion is byte for byte that of its Postgres.
fn responds_like_postgres(fixture: &Fixture) {
    let options = [
        ("user", "teesql_read"),
        ("database", "via_scram"),
        ("_pq_.a", "b"),
        ("_pq_.c", ""),
    ];
    for server in fixture.harness.servers() {
        let cluster = fixture.harness.cluster(&server, PasswordEncryption::Scram);
        let sidecar = fixture.sidecar_for(&server, PasswordEncryption::Scram);
        for version in [PROTOCOL_3_0, PROTOCOL_3_2, PROTOCOL_GREASE] {
            let packet = startup(version, &options);
            let mut direct = TcpStream::connect(cluster.address()).expect("Postgres accepts");
            direct.write_all(&packet).expect("Postgres reads");
            let (tag, body) = read_message(&mut direct).expect("a response");
            assert_eq!(tag, b'v', "{} {version:#x}", server.label());
            let mut client = fixture.client(sidecar.address());
            client.send(&packet);
            let negotiated = client.expect(b'v').body;
            assert_eq!(negotiated, body, "{} {version:#x}", server.label());
        }
    }
}

fn does_not_forward_options(fixture: &Fixture) {
    let packets: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let record = packets.clone();
    let postgres = FakeServer::start(move |mut stream| {
        let packet = read_startup(&mut stream)?;
        if be32(&packet) == PROTOCOL_GREASE {
            return stream.write_all(&negotiate(PROTOCOL_3_0));
        }
        // The sidecar itself logs in as the superuser.
        let of_reader = b"user\0teesql_read\0";
        if packet
            .windows(of_reader.len())
            .any(|part| part == of_reader)
        {
            record.lock().expect("no panic while locked").push(packet);
        }
        accept_login(&mut stream)
    });
    let sidecar = Sidecar::start(&fixture.settings_for_fake(&postgres));
    let mut client = fixture.client(sidecar.address());
    let options: &[(&str, &str)] = &[
        ("_pq_.x", "y"),
        ("user", "teesql_read"),
        ("x", "y"),
        ("_pq_.z", ""),
        ("database", "d"),
    ];
    let response = client.start_with(PROTOCOL_3_2, options);
    client
        .authenticate(READ_SECRET, response)
        .expect("the login succeeds");
    let packets = packets.lock().expect("no panic while locked").clone();
    let expected = [
        &PROTOCOL_3_0.to_be_bytes()[..],
        b"user\0teesql_read\0x\0y\0database\0d\0",
    ];
    // What follows are the sidecar's own settings of the session.
    let [packet] = &packets[..] else {
        panic!("{packets:?}");
    };
    assert!(packet.starts_with(&expected.concat()), "{packet:?}");
    assert!(
        !packet.windows(5).any(|part| part == b"_pq_."),
        "{packet:?}"
    );
}

fn negotiate(version: u32) -> Vec<u8> {
    tagged(b'v', &[version.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

/// A Postgres with protocol 3.0 is replaced by one with 3.2 on the same socket, and back. The
/// sidecar notices after one failed login at most.
fn follows_postgres_upgrade(fixture: &Fixture) {
    let new = fixture
        .harness
        .postgres18
        .as_ref()
        .expect("the test requires it");
    let path = fixture.harness.unique_path("moving.sock");
    let sidecar = {
        link(fixture, &fixture.harness.installed, &path);
        Sidecar::start(&fixture.settings_for(path.to_str().expect("UTF-8")))
    };
    let await_version = |server: &Server| {
        let newest = server.protocol();
        let expected = (newest < PROTOCOL_3_2).then(|| (newest, Vec::new()));
        let noticed = poll_until(TIMEOUT, || {
            let mut client =
                Client::connect(&fixture.harness, sidecar.address(), TlsNegotiation::Raw);
            let parameters = [("user", "teesql_read"), ("database", "via_scram")];
            let response = client.start_with(PROTOCOL_3_2, &parameters);
            let negotiated = response.negotiation.clone();
            let login = client.authenticate(READ_SECRET, response);
            (login.is_ok() && negotiated == expected).then_some(())
        });
        assert!(
            noticed.is_some(),
            "the sidecar does not notice that Postgres is {}",
            server.label()
        );
    };
    await_version(&fixture.harness.installed);
    link(fixture, new, &path);
    await_version(new);
    link(fixture, &fixture.harness.installed, &path);
    await_version(&fixture.harness.installed);
}

fn link(fixture: &Fixture, server: &Server, path: &Path) {
    let _ = fs::remove_file(path);
    let socket = fixture
        .harness
        .cluster(server, PasswordEncryption::Scram)
        .socket();
    symlink(socket, path).expect("a new link");
}
