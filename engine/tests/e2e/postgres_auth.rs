//! What Postgres must prove: a process on its address that asks for anything but SCRAM gets
//! neither a password nor a query, and a listener of another user on its Unix socket gets nothing.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::harness::cluster::ClusterOptions;
use crate::harness::fake_server::{FakeServer, accept_login, read_message, read_startup};
use crate::harness::fixture::Fixture;
use crate::harness::http::{self, get};
use crate::harness::message::{be32, tagged};
use crate::harness::process::{TIMEOUT, lossy, poll_until, run};
use crate::harness::settings::sidecar_command;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{
    READ_PASSWORD, READ_SECRET, READWRITE_PASSWORD, READWRITE_SECRET, SUPERUSER_PASSWORD,
};
use crate::upstream::{failed, refusal};
use crate::upstream_protocol_errors::scram;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("postgres_auth::clients_logins", clients_logins);
    suite.add("postgres_auth::hba_without_scram", hba_without_scram);
    suite.add("postgres_auth::unix_socket_user", unix_socket_user);
    suite.add("postgres_auth::trust_on_unix_socket", trust_on_unix_socket);
    if suite.adds_driver_independent() {
        suite.add("postgres_auth::few_iterations", few_iterations);
        suite.add("postgres_auth::attestation_report", attestation_report);
        suite.add("postgres_auth::provision", provision);
    }
}

/// The request of an impostor: its name, the Authentication message, and our text about it.
const REQUESTS: [(&str, u32, &[u8], &str); 3] = [
    ("cleartext", 3, b"", "a password in cleartext"),
    ("md5", 5, b"salt", "an MD5 hash"),
    ("trust", 0, b"", "no password"),
];

/// The protocol version of the sidecar's probe, which the impostor answers like Postgres.
const GREASE: u32 = 0x0003_270f;

/// A process on Postgres' address that asks for `code`, and records all that it gets.
struct Impostor {
    server: FakeServer,
    received: Arc<Mutex<Vec<u8>>>,
    logins: Arc<AtomicUsize>,
}

impl Impostor {
    fn start(code: u32, data: &'static [u8]) -> Self {
        let (received, logins) = (
            Arc::<Mutex<Vec<u8>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (record, count) = (Arc::clone(&received), Arc::clone(&logins));
        let server = FakeServer::start(move |mut stream| {
            let startup = read_startup(&mut stream)?;
            if be32(&startup) == GREASE {
                let body = [0x0003_0000_u32.to_be_bytes(), [0; 4]].concat();
                return stream.write_all(&tagged(b'v', &body));
            }
            count.fetch_add(1, Ordering::SeqCst);
            if code == 0 {
                accept_login(&mut stream)?;
            } else {
                let body = [&code.to_be_bytes()[..], data].concat();
                stream.write_all(&tagged(b'R', &body))?;
            }
            record_all(&mut stream, &record)
        });
        Self {
            server,
            received,
            logins,
        }
    }

    /// Checks that it was asked, and got nothing but start-up packets.
    fn assert_got_nothing(&self, what: &str) {
        assert!(self.logins.load(Ordering::SeqCst) > 0, "{what}: no login");
        let received = self.received.lock().expect("no panic while locked");
        assert_eq!(lossy(&received), "", "{what}");
    }
}

fn record_all(stream: &mut TcpStream, record: &Mutex<Vec<u8>>) -> io::Result<()> {
    loop {
        let (tag, body) = read_message(stream)?;
        let mut record = record.lock().expect("no panic while locked");
        record.push(tag);
        record.extend(body);
    }
}

fn clients_logins(fixture: &Fixture) {
    for (name, code, data, method) in REQUESTS {
        let impostor = Impostor::start(code, data);
        let upstream = impostor.server.address().to_string();
        let sidecar = Sidecar::start(&fixture.settings_for(&upstream));
        for (role, secret) in [
            ("teesql_read", READ_SECRET),
            ("teesql_readwrite", READWRITE_SECRET),
            ("postgres", SUPERUSER_PASSWORD),
        ] {
            let (error, reason) = refusal(fixture, &sidecar, role, secret, "d");
            let text = format!("the server asks for {method} instead of SCRAM-SHA-256");
            assert_eq!(error, failed("57P03", &text), "{name}");
            assert_eq!(reason, "postgres_not_scram", "{name}");
        }
        impostor.assert_got_nothing(name);
    }
}

/// From a proof with one iteration, the password could be guessed.
fn few_iterations(fixture: &Fixture) {
    let proofs = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&proofs);
    let impostor = FakeServer::start(move |mut stream| {
        if be32(&read_startup(&mut stream)?) == GREASE {
            let body = [0x0003_0000_u32.to_be_bytes(), [0; 4]].concat();
            return stream.write_all(&tagged(b'v', &body));
        }
        scram(&mut stream, "r={nonce}x,s=c2FsdHNhbHRzYWx0,i=1")?;
        read_message(&mut stream)?;
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let sidecar = Sidecar::start(&fixture.settings_for(&impostor.address().to_string()));
    let (error, reason) = refusal(fixture, &sidecar, "teesql_read", READ_SECRET, "d");
    let text = "the server asks for 1 SCRAM iterations, which is too few";
    assert_eq!(error, failed("57P03", text));
    assert_eq!(reason, "postgres_scram_few_iterations");
    assert_eq!(proofs.load(Ordering::SeqCst), 0, "it got a proof");
}

/// A real Postgres whose `pg_hba.conf` names another method.
fn hba_without_scram(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    for (database, method) in [
        ("via_trust", "no password"),
        ("via_password", "a password in cleartext"),
    ] {
        let (error, reason) = refusal(fixture, &sidecar, "teesql_read", READ_SECRET, database);
        let text = format!("the server asks for {method} instead of SCRAM-SHA-256");
        assert_eq!(error, failed("57P03", &text));
        assert_eq!(reason, "postgres_not_scram");
    }
}

/// An unauthenticated request for a report logs in as the superuser.
fn attestation_report(fixture: &Fixture) {
    for (name, code, data, method) in REQUESTS {
        let impostor = Impostor::start(code, data);
        let tdx = TdxFixture::new();
        let _agent = tdx.start_agent();
        let upstream = impostor.server.address().to_string();
        let sidecar = Sidecar::start(&tdx.with_agent(fixture.settings_for(&upstream)));
        let address = sidecar.admin_address();
        http::await_ready(address);
        let body = get(address, "/attestation").body;
        let text = format!("the server asks for {method} instead of SCRAM-SHA-256");
        assert!(body.contains(&text), "{name}: {body}");
        impostor.assert_got_nothing(name);
    }
}

fn provision(_: &Fixture) {
    for (name, code, data, method) in REQUESTS {
        let impostor = Impostor::start(code, data);
        let environment = [
            ("TEESQL_POSTGRES", &*impostor.server.address().to_string()),
            ("TEESQL_PG_PASSWORD_READ", READ_PASSWORD),
            ("TEESQL_PG_PASSWORD_READWRITE", READWRITE_PASSWORD),
            ("TEESQL_PG_PASSWORD_SUPERUSER", SUPERUSER_PASSWORD),
        ];
        let output = run(sidecar_command(&["provision"], &environment), TIMEOUT);
        let stderr = lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{name}: {stderr}");
        let text = format!(
            "cannot log in to Postgres as postgres: the server asks for {method} instead of \
             SCRAM-SHA-256"
        );
        assert!(stderr.contains(&text), "{name}: {stderr}");
        impostor.assert_got_nothing(name);
    }
}

/// Root may be any user: the listener's user is configured instead of changed.
fn unix_socket_user(fixture: &Fixture) {
    let path = fixture.harness.unique_path("impostor.sock");
    let listener = UnixListener::bind(&path).expect("a free path");
    let received = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&received);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let bytes = io::copy(&mut stream, &mut io::sink()).unwrap_or_default();
            count.fetch_add(
                usize::try_from(bytes).unwrap_or(usize::MAX),
                Ordering::SeqCst,
            );
        }
    });
    let settings = fixture
        .settings_for(path.to_str().expect("UTF-8"))
        .set("TEESQL_POSTGRES_UID", "4294967")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let sidecar = Sidecar::start(&settings);
    let own = nix::unistd::Uid::effective();
    let text = format!(
        "the process that listens on the Unix socket runs as user id {own}, which is not a user \
         that Postgres may run as"
    );
    let (error, reason) = refusal(fixture, &sidecar, "teesql_read", READ_SECRET, "d");
    assert_eq!(error, failed("57P03", &text));
    assert_eq!(reason, "postgres_wrong_listener");
    http::await_unready(sidecar.admin_address(), "postgres", &text);
    // Later than the sidecar's connections.
    UnixStream::connect(&path)
        .expect("it listens")
        .write_all(b"x")
        .expect("it reads");
    poll_until(TIMEOUT, || {
        (received.load(Ordering::SeqCst) > 0).then_some(())
    })
    .expect("our byte");
    assert_eq!(
        received.load(Ordering::SeqCst),
        1,
        "the sidecar sent something"
    );
}

/// The kernel identifies the server there, so that `trust` and `peer` are possible.
fn trust_on_unix_socket(fixture: &Fixture) {
    let options = ClusterOptions {
        hba: Some("host all all 127.0.0.1/32 scram-sha-256\n"),
        databases: vec!["app"],
        ..ClusterOptions::default()
    };
    let installed = &fixture.harness.installed;
    let cluster = fixture.harness.private_cluster(installed, &options);
    let socket = cluster.socket();
    let user = cluster.owner_name();
    let settings = fixture.settings_for(socket.to_str().expect("UTF-8"));
    for settings in [settings.clone(), settings.set("TEESQL_POSTGRES_UID", &user)] {
        let sidecar = Sidecar::start(&settings);
        let mut client = fixture.client(sidecar.address());
        let login = client.login("teesql_read", "app", READ_SECRET);
        login.expect("the login succeeds");
        assert_eq!(client.query_value("select current_user"), "teesql_read");
    }
}
