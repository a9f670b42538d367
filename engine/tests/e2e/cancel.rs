//! Tests of cancel requests: accepted inside TLS, and in plaintext only if the setting allows it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::{Client, CloseKind, StartupResponse, TcpClient, TlsNegotiation};
use crate::harness::cluster::{Cluster, ClusterOptions, Server};
use crate::harness::fake_server::{FakeServer, read_startup, read_until_close};
use crate::harness::fixture::Fixture;
use crate::harness::message::{self, PROTOCOL_3_0, PROTOCOL_3_2, be32, query, tagged};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{PasswordEncryption, READ_SECRET};

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        for negotiation in TlsNegotiation::ALL {
            let name = format!("cancel::{}::{negotiation}", server.label());
            let server = server.clone();
            suite.add(&name, move |fixture| {
                inside_tls(fixture, &server, negotiation)
            });
        }
    }
    suite.add("cancel::refuses_plaintext_by_default", plaintext_refused);
    suite.add("cancel::accepts_plaintext_if_allowed", plaintext_allowed);
    suite.add("cancel::wrong_key_cancels_nothing", wrong_key);
    suite.add("cancel::is_dropped_if_postgres_is_frozen", frozen_postgres);
    if suite.adds_driver_independent() {
        suite.add("cancel::is_dropped_if_postgres_with_tls_freezes", freezes);
    }
}

/// A Postgres that offers TLS, and answers this many SSLRequests before it freezes. Counts the CancelRequests that reach
/// it.
fn postgres_with_tls(answers: usize, cancels: &Arc<AtomicUsize>) -> FakeServer {
    let (asked, cancels) = (AtomicUsize::new(0), Arc::clone(cancels));
    FakeServer::start(move |mut stream| {
        let body = read_startup(&mut stream)?;
        match be32(&body) {
            message::PROTOCOL_GREASE => {
                let body = [0x0003_0000_u32.to_be_bytes(), [0; 4]].concat();
                stream.write_all(&tagged(b'v', &body))
            }
            message::CANCEL_CODE => {
                cancels.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            code if code == be32(&message::SSL_REQUEST[4..]) => {
                if asked.fetch_add(1, Ordering::SeqCst) < answers {
                    stream.write_all(b"S")?;
                }
                read_until_close(&mut stream)
            }
            // A login of the sidecar's own.
            _ => Ok(()),
        }
    })
}

/// Postgres, which expects TLS on the connection that was probed, gets the CancelRequest on another one. That is probed
/// as well.
fn freezes(fixture: &Fixture) {
    for (answers, reason, expected) in [(2, "cancel_forwarded", 1), (1, "cancel_expired", 0)] {
        let cancels = Arc::default();
        let postgres = postgres_with_tls(answers, &cancels);
        let sidecar = Sidecar::start(&fixture.settings_for(&postgres.address().to_string()));
        let mut client = Client::connect(&fixture.harness, sidecar.address(), TlsNegotiation::Raw);
        client.send(&message::cancel(7, &[1, 2, 3, 4]));
        assert_eq!(client.expect_close(), CloseKind::Clean);
        let line = sidecar.await_connection_end(client.local_address());
        assert_eq!(line["reason"], reason, "{line}");
        assert_eq!(cancels.load(Ordering::SeqCst), expected, "{reason}");
    }
}

/// A session whose query sleeps for an hour.
struct SleepingSession {
    client: Client,
    response: StartupResponse,
}

impl SleepingSession {
    fn start(fixture: &Fixture, server: &Server, sidecar: &Sidecar, version: u32) -> Self {
        let cluster = fixture.harness.cluster(server, PasswordEncryption::Scram);
        Self::start_in(fixture, cluster, sidecar, version)
    }

    fn start_in(fixture: &Fixture, cluster: &Cluster, sidecar: &Sidecar, version: u32) -> Self {
        let mut client = fixture.client(sidecar.address());
        let parameters = [("user", "teesql_read"), ("database", "via_scram")];
        let response = client.start_with(version, &parameters);
        let response = client
            .authenticate(READ_SECRET, response)
            .expect("the login succeeds");
        client.send(&query("select pg_sleep(3600)"));
        let session = Self { client, response };
        session.await_sleep_in(cluster);
        session
    }

    fn await_sleep(&self, fixture: &Fixture, server: &Server) {
        self.await_sleep_in(fixture.harness.cluster(server, PasswordEncryption::Scram));
    }

    fn await_sleep_in(&self, cluster: &Cluster) {
        let sql = format!(
            "select wait_event from pg_stat_activity where pid = {}",
            self.response.pid
        );
        cluster.await_result(&sql, "PgSleep");
    }

    /// Has the query cancelled by a CancelRequest through `canceller`.
    ///
    /// Postgres signals the backend and its process group, one after the other. A query sent between the two would be
    /// cancelled as well. The connection closes after both.
    fn cancel_by(&mut self, mut canceller: Client) {
        canceller.send(&self.cancel_request());
        assert_eq!(canceller.expect_close(), CloseKind::Clean);
        self.expect_cancelled();
    }

    fn cancel_request(&self) -> Vec<u8> {
        message::cancel(self.response.pid, &self.response.key)
    }

    fn expect_cancelled(&mut self) {
        self.client.expect(b'T');
        let error = self.client.expect(b'E').error();
        assert_eq!(error.code, "57014", "{error}");
        assert_eq!(error.message, "canceling statement due to user request");
        self.client.expect(b'Z');
        assert_eq!(self.client.query_value("select 'still here'"), "still here");
    }
}

fn inside_tls(fixture: &Fixture, server: &Server, negotiation: TlsNegotiation) {
    let sidecar = fixture.sidecar_for(server, PasswordEncryption::Scram);
    for version in [PROTOCOL_3_0, PROTOCOL_3_2] {
        // Repeated, so that a shard other than the session's forwards some of the requests.
        for _ in 0..4 {
            let mut session = SleepingSession::start(fixture, server, &sidecar, version);
            let canceller = Client::connect(&fixture.harness, sidecar.address(), negotiation);
            session.cancel_by(canceller);
        }
    }
}

/// The kernel accepts a CancelRequest for a frozen Postgres, which would read it when it continues, and cancel what the
/// session does by then.
fn frozen_postgres(fixture: &Fixture) {
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    let sidecar = Sidecar::start(&fixture.settings_for(&cluster.address().to_string()));
    let mut session = SleepingSession::start_in(fixture, &cluster, &sidecar, PROTOCOL_3_0);
    cluster.signal_postmaster(Signal::SIGSTOP);
    let mut canceller = Client::connect(&fixture.harness, sidecar.address(), TlsNegotiation::Raw);
    canceller.send(&session.cancel_request());
    assert_eq!(canceller.expect_close(), CloseKind::Clean);
    let line = sidecar.await_connection_end(canceller.local_address());
    assert_eq!(line["reason"], "cancel_expired", "{line}");
    assert_eq!(line["message"], "cancel request dropped", "{line}");
    cluster.signal_postmaster(Signal::SIGCONT);
    // Postgres accepts connections in their order: it has seen that of the cancellation before this one.
    let mut later = fixture.session(&sidecar);
    assert_eq!(later.query_value("select 'served'"), "served");
    std::thread::sleep(Duration::from_millis(300));
    session.await_sleep_in(&cluster);
    session.cancel_by(Client::connect(
        &fixture.harness,
        sidecar.address(),
        TlsNegotiation::Raw,
    ));
}

fn plaintext_refused(fixture: &Fixture) {
    let server = &fixture.harness.installed;
    let sidecar = Sidecar::start(&fixture.settings());
    let mut session = SleepingSession::start(fixture, server, &sidecar, PROTOCOL_3_0);
    let mut tcp = TcpClient::connect(sidecar.address());
    tcp.send(&session.cancel_request());
    assert_eq!(tcp.read_to_end(), b"");
    let line = sidecar.await_connection_end(tcp.local_address());
    assert_eq!(line["reason"], "plaintext_cancel", "{line}");
    session.await_sleep(fixture, server);

    let mut canceller = Client::connect(&fixture.harness, sidecar.address(), TlsNegotiation::Raw);
    canceller.send(&session.cancel_request());
    assert_eq!(canceller.expect_close(), CloseKind::Clean);
    let line = sidecar.await_connection_end(canceller.local_address());
    assert_eq!(line["reason"], "cancel_forwarded", "{line}");
    session.expect_cancelled();
}

fn plaintext_allowed(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let upstream = fixture
            .harness
            .cluster(&server, PasswordEncryption::Scram)
            .address()
            .to_string();
        let settings = fixture
            .settings_for(&upstream)
            .set("TEESQL_PLAINTEXT_CANCEL", "true");
        let sidecar = Sidecar::start(&settings);
        for version in [PROTOCOL_3_0, PROTOCOL_3_2] {
            let mut session = SleepingSession::start(fixture, &server, &sidecar, version);
            // Byte by byte: the packet may arrive in several segments.
            let mut tcp = TcpClient::connect(sidecar.address());
            for byte in session.cancel_request() {
                tcp.send(&[byte]);
            }
            assert_eq!(tcp.read_to_end(), b"");
            session.expect_cancelled();
        }
    }
}

fn wrong_key(fixture: &Fixture) {
    let server = &fixture.harness.installed;
    let sidecar = fixture.sidecar();
    let mut session = SleepingSession::start(fixture, server, &sidecar, PROTOCOL_3_0);
    let mut key = session.response.key.clone();
    key[3] ^= 1;
    let mut canceller = fixture.client(sidecar.address());
    canceller.send(&message::cancel(session.response.pid, &key));
    assert_eq!(canceller.expect_close(), CloseKind::Clean);
    // The connection was closed, so that Postgres has processed the request.
    session.await_sleep(fixture, server);
    session.cancel_by(fixture.client(sidecar.address()));
}
