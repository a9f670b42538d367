//! Tests that refused logins are indistinguishable: a wrong secret, a wrong role and an unknown role
//! get the same bytes, the same record sizes and the same timing, and the sidecar does not connect to
//! Postgres.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::client::{Client, CloseKind, TcpClient, TlsNegotiation};
use crate::harness::fake_server::{FakeServer, forward, is_of_sidecar};
use crate::harness::fixture::Fixture;
use crate::harness::message::PROTOCOL_3_0;
use crate::harness::process::{TIMEOUT, poll_until, run_for_both_outputs};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, READER, READWRITE_SECRET, SUPERUSER_PASSWORD, WRONG_SECRET};
use crate::login::refused;

/// Logins that are refused for different reasons.
const REFUSED_LOGINS: [(&str, &str); 6] = [
    ("teesql_read", WRONG_SECRET),
    ("teesql_readwrite", WRONG_SECRET),
    ("teesql_readwrite", READ_SECRET),
    ("postgres", READWRITE_SECRET),
    ("no_such_role", READWRITE_SECRET),
    ("no_such_role", WRONG_SECRET),
];

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "login_refusal::same_bytes_without_postgres",
        same_bytes_without_postgres,
    );
    suite.add("login_refusal::same_timing", same_timing);
    suite.add(
        "login_refusal::wrong_secrets_are_logged_during_a_flood",
        logged_during_a_flood,
    );
    suite.add(
        "login_refusal::superuser_without_configured_password",
        without_superuser_password,
    );
}

/// A flood of garbage that exceeds its budget of log lines hides no wrong secret of an attested client.
fn logged_during_a_flood(fixture: &Fixture) {
    const ATTEMPTS: usize = 7;
    const CONCURRENT: usize = 6;
    let tdx = TdxFixture::new();
    // Each shard has its own back-off.
    let settings = tdx
        .attested_sidecar_settings(fixture)
        .set("TEESQL_SHARDS", "1")
        .set("TEESQL_LOGIN_TIMEOUT", "5s");
    let sidecar = Sidecar::start(&settings);
    let right = || run_for_both_outputs(tdx.psql(&sidecar, READER, "select 1"), TIMEOUT);
    assert_eq!(right(), "1\n");
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stopped.load(Ordering::Relaxed) {
                    let mut client = TcpClient::connect(sidecar.address());
                    client.send(b"GARBAGE!");
                    client.read_to_end();
                }
            });
        }
        let suppressed = sidecar.await_message("log lines about client errors suppressed");
        assert_eq!(suppressed["kind"], "opening", "{suppressed}");
        let started = Instant::now();
        for _ in 0..ATTEMPTS {
            let wrong = tdx.psql(&sidecar, ("teesql_read", WRONG_SECRET), "select 1");
            let output = run_for_both_outputs(wrong, TIMEOUT);
            assert!(
                output.contains("password authentication failed"),
                "{output}"
            );
        }
        // From the fourth on they are answered 100, 200, 400 and 800 ms later.
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(1_500), "{took:?}");
        stopped.store(true, Ordering::Relaxed);
    });
    // At the same time: the last ones would be answered after the login deadline.
    thread::scope(|scope| {
        for _ in 0..CONCURRENT {
            scope.spawn(|| {
                let wrong = tdx.psql(&sidecar, ("teesql_read", WRONG_SECRET), "select 1");
                let output = run_for_both_outputs(wrong, TIMEOUT);
                assert!(
                    output.contains("password authentication failed"),
                    "{output}"
                );
            });
        }
    });
    let failed = |line: &String| line.contains("\"reason\":\"authentication_failed\"");
    poll_until(TIMEOUT, || {
        let lines = sidecar.log_lines();
        let logged = lines.iter().filter(|line| failed(line)).count();
        (logged == ATTEMPTS + CONCURRENT).then_some(())
    })
    .expect("a line for each wrong secret");
    // A right secret is not delayed, and ends the back-off.
    assert_eq!(right(), "1\n");
    let started = Instant::now();
    let wrong = tdx.psql(&sidecar, ("teesql_read", WRONG_SECRET), "select 1");
    run_for_both_outputs(wrong, TIMEOUT);
    assert!(started.elapsed() < Duration::from_millis(1_500));
}

fn same_bytes_without_postgres(fixture: &Fixture) {
    let (upstream, own) = (fixture.cluster().address(), Arc::<AtomicUsize>::default());
    let count = own.clone();
    let postgres = FakeServer::start(move |client| {
        if is_of_sidecar(&client)? {
            count.fetch_add(1, Ordering::SeqCst);
        }
        forward(client, upstream)
    });
    let assert_logins = |expected: usize, what: &str| {
        let logins = || postgres.accepted() - own.load(Ordering::SeqCst);
        // The sidecar's own connections are counted a moment after they are accepted.
        poll_until(TIMEOUT, || (logins() == expected).then_some(()))
            .unwrap_or_else(|| panic!("{what}: {} logins at Postgres, not {expected}", logins()));
    };
    let sidecar = Sidecar::start(&fixture.settings_for(&postgres.address().to_string()));
    fixture.session(&sidecar).terminate();
    assert_logins(1, "after one session");
    let log_before = fixture.cluster().log().len();

    let marker = fixture.harness.unique_name("marker");
    for negotiation in TlsNegotiation::ALL {
        let mut refusals = Vec::new();
        for (role, secret) in REFUSED_LOGINS {
            let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
            let parameters = [
                ("user", role),
                ("database", "via_scram"),
                ("application_name", &marker),
            ];
            let response = client.start_with(PROTOCOL_3_0, &parameters);
            let mut exchange = client.exchange(secret, &response.mechanisms);
            let challenge = client.read_challenge(&exchange).expect("a challenge");
            client.send(&exchange.proof(&challenge));
            let text = String::from_utf8(challenge).expect("ASCII");
            let (_, salt_and_count) = text.split_once(',').expect("a nonce");
            let seen = (text.len(), salt_and_count.to_owned());
            let answer = client.read().expect("a refusal");
            assert_eq!(answer.error(), refused(), "{role}");
            assert_eq!(client.expect_close(), CloseKind::Clean, "{role}");
            // Only the records after the handshake: the length of its signature varies.
            let records = client.records_received();
            let visible = records[records.len() - 3..].to_vec();
            refusals.push((role, (seen, answer, visible)));
        }
        for (role, refusal) in &refusals {
            assert_eq!(refusal, &refusals[0].1, "{negotiation} {role}");
        }
    }
    assert_logins(1, "after the refused clients");
    let log = fixture.cluster().log();
    assert!(
        !log[log_before..].contains(&marker),
        "Postgres logged a refused client"
    );

    let _session = fixture.session(&sidecar);
    assert_logins(2, "after another session");
}

/// Coarse, because the machine is shared: it detects a lookup, a connection attempt or a delay that
/// only one kind of refusal has, but not a comparison that stops early.
///
/// The fastest answer of each kind has waited least for a core, and the more rounds there are, the less. So they go on
/// until the fastest are close together, which they never are if one kind always takes longer.
fn same_timing(fixture: &Fixture) {
    const MIN_ROUNDS: usize = 10;
    const CLOSE: Duration = Duration::from_millis(1);
    let sidecar = Sidecar::start(&fixture.settings());
    let mut fastest = [Duration::MAX; REFUSED_LOGINS.len()];
    let started = Instant::now();
    for round in 1.. {
        for (login, fastest) in REFUSED_LOGINS.into_iter().zip(&mut fastest) {
            *fastest = time_to_refuse(fixture, &sidecar, login).min(*fastest);
        }
        let (shortest, longest) = (fastest.iter().min(), fastest.iter().max());
        let spread = *longest.expect("six") - *shortest.expect("six");
        if round >= MIN_ROUNDS && spread < CLOSE {
            return;
        }
        assert!(
            started.elapsed() < TIMEOUT,
            "the fastest of {round} rounds differ by {spread:?}: {fastest:?}"
        );
    }
}

/// From the proof of a wrong secret to the refusal.
fn time_to_refuse(fixture: &Fixture, sidecar: &Sidecar, (role, secret): (&str, &str)) -> Duration {
    let mut client = fixture.client(sidecar.address());
    let response = client.start(role, "via_scram");
    let mut exchange = client.exchange(secret, &response.mechanisms);
    let challenge = client.read_challenge(&exchange).expect("a challenge");
    let packet = exchange.proof(&challenge);
    let start = Instant::now();
    client.send(&packet);
    client.read().expect("a refusal");
    start.elapsed()
}

fn without_superuser_password(fixture: &Fixture) {
    let settings = fixture.settings().without("TEESQL_PG_PASSWORD_SUPERUSER");
    let sidecar = Sidecar::start(&settings);
    for secret in ["", SUPERUSER_PASSWORD, READWRITE_SECRET] {
        let mut client = fixture.client(sidecar.address());
        let error = client.login("postgres", "via_scram", secret).err();
        assert_eq!(error, Some(refused()), "{secret:?}");
    }
}
