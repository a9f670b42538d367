//! A wrong secret, a wrong role and an unknown role cannot be told apart: not by
//! the bytes, not by their sizes on the tcp, not by the time, and Postgres is
//! not even dialled.

use std::time::{Duration, Instant};

use crate::harness::client::{Client, CloseKind, TlsNegotiation};
use crate::harness::fake_server::FakeServer;
use crate::harness::message::{PROTOCOL_3_0, password};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{READ_SECRET, READWRITE_SECRET, SUPERUSER_PASSWORD, WRONG_SECRET};
use crate::login::refused;

/// Refusals that differ only in why.
const KINDS: [(&str, &str); 6] = [
    ("teesql_read", WRONG_SECRET),
    ("teesql_readwrite", WRONG_SECRET),
    ("teesql_readwrite", READ_SECRET),
    ("postgres", READWRITE_SECRET),
    ("no_such_role", READWRITE_SECRET),
    ("no_such_role", WRONG_SECRET),
];

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "refusal::same_bytes_and_no_postgres",
        same_bytes_and_no_postgres,
    );
    suite.add("refusal::same_time", same_time);
    suite.add(
        "refusal::without_a_superuser_password",
        without_superuser_password,
    );
}

fn same_bytes_and_no_postgres(fixture: &Fixture) {
    let postgres = FakeServer::proxy_to(fixture.cluster().address());
    let sidecar = Sidecar::start(&fixture.settings_for(&postgres.address().to_string()));
    // One good login: by then, whatever the sidecar asks Postgres at its start is asked.
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("the login succeeds");
    client.terminate();
    let before = postgres.accepted();
    let log_before = fixture.cluster().log().len();

    let marker = fixture.harness.unique_name("marker");
    for opening in TlsNegotiation::ALL {
        let mut seen = Vec::new();
        for (role, secret) in KINDS {
            let mut client = Client::open(&fixture.harness, sidecar.address(), opening);
            let parameters = [
                ("user", role),
                ("database", "via_scram"),
                ("application_name", &marker),
            ];
            client.start_with(PROTOCOL_3_0, &parameters);
            client.send(&password(secret));
            let answer = client.read().expect("a refusal");
            assert_eq!(answer.error(), refused(), "{role}");
            assert_eq!(client.expect_close(), CloseKind::Clean, "{role}");
            // Behind the handshake, whose signature differs in length by itself.
            let records = client.records_received();
            let visible = records[records.len() - 3..].to_vec();
            seen.push((role, answer, visible));
        }
        for (role, answer, visible) in &seen {
            assert_eq!(
                (answer, visible),
                (&seen[0].1, &seen[0].2),
                "{opening} {role}"
            );
        }
    }
    assert_eq!(
        postgres.accepted(),
        before,
        "Postgres was dialled for a refused client"
    );
    let log = fixture.cluster().log();
    assert!(
        !log[log_before..].contains(&marker),
        "Postgres heard of a refused client"
    );

    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("the login succeeds");
    assert_eq!(
        postgres.accepted(),
        before + 1,
        "one login is one connection"
    );
}

/// Coarse, as the machine is shared: it finds a lookup, a dial or a delay that
/// only one kind of refusal has, not a comparison that stops early.
fn same_time(fixture: &Fixture) {
    const ROUNDS: usize = 40;
    let sidecar = Sidecar::start(&fixture.settings());
    let mut times = vec![Vec::new(); KINDS.len()];
    for _ in 0..ROUNDS {
        for ((role, secret), times) in KINDS.iter().zip(&mut times) {
            let mut client = fixture.client(sidecar.address());
            client.start(role, "via_scram");
            let packet = password(secret);
            let asked = Instant::now();
            client.send(&packet);
            client.read().expect("a refusal");
            times.push(asked.elapsed());
        }
    }
    let medians: Vec<Duration> = times
        .iter_mut()
        .map(|times| {
            times.sort();
            times[ROUNDS / 2]
        })
        .collect();
    let (least, most) = (medians.iter().min(), medians.iter().max());
    let spread = *most.expect("some") - *least.expect("some");
    assert!(
        spread < Duration::from_millis(2),
        "medians differ by {spread:?}: {medians:?}"
    );
}

fn without_superuser_password(fixture: &Fixture) {
    let settings = fixture.settings().without("TEESQL_PG_PASSWORD_SUPERUSER");
    let sidecar = Sidecar::start(&settings);
    for secret in ["", SUPERUSER_PASSWORD, READWRITE_SECRET] {
        let mut client = fixture.client(sidecar.address());
        let error = client.login("postgres", "via_trust", secret).err();
        assert_eq!(error, Some(refused()), "{secret:?}");
    }
}
