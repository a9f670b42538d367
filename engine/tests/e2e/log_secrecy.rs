//! With everything logged that can be logged, nothing secret is.

use nix::sys::signal::Signal;

use crate::harness::client::{Client, Opening};
use crate::harness::message::{self, PROTOCOL_3_2, query, tagged};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Suite, World};
use crate::harness::{
    READ_SECRET, READWRITE_SECRET, SECRETS, SUPERUSER_PASSWORD, Verifier, WRONG_SECRET,
};

/// Markers in places where a careless log would pick them up.
const SQL: &str = "sql_marker_48151623";
const PARAMETER: &str = "parameter_marker_48151623";
const ROLE: &str = "role_marker_48151623";
const BODY: &str = "body_marker_48151623";

pub(crate) fn add(suite: &mut Suite) {
    suite.add("secrecy::nothing_secret_in_the_log", |world| {
        nothing_secret(world, "json")
    });
    suite.add("secrecy::nothing_secret_in_the_text_log", |world| {
        nothing_secret(world, "text")
    });
}

fn nothing_secret(world: &World, format: &str) {
    for server in world.stage.servers() {
        for (database, verifier) in [
            ("via_trust", Verifier::Scram),
            ("via_password", Verifier::Scram),
            ("via_md5", Verifier::Md5),
            ("via_scram", Verifier::Scram),
        ] {
            let upstream = world.stage.cluster(&server, verifier).address().to_string();
            let settings = world.settings_for(&upstream).set("TEESQL_LOG", "trace");
            // A text log says its address in words: what it says when is the other trial's.
            let sidecar = Sidecar::start_logging(&settings, format);
            play(world, &sidecar, database);
            sidecar.signal(Signal::SIGTERM);
            sidecar.await_exit();
            inspect(&sidecar);
        }
    }
}

/// Logins of all kinds, queries, refusals and broken messages, all of them marked.
fn play(world: &World, sidecar: &Sidecar, database: &str) {
    for (role, secret) in [
        ("teesql_read", READ_SECRET),
        ("teesql_read", READWRITE_SECRET),
        ("teesql_readwrite", READWRITE_SECRET),
        ("postgres", SUPERUSER_PASSWORD),
        ("teesql_read", WRONG_SECRET),
        ("postgres", READ_SECRET),
        (ROLE, READWRITE_SECRET),
        // Role and secret swapped by mistake.
        (READ_SECRET, "teesql_read"),
    ] {
        let mut client = Client::open(&world.stage, sidecar.address(), Opening::Raw);
        let parameters = [
            ("user", role),
            ("database", database),
            ("application_name", PARAMETER),
            ("_pq_.x", PARAMETER),
        ];
        let greeting = client.start_with(PROTOCOL_3_2, &parameters);
        if client.give(secret, greeting).is_ok() {
            client.query(&format!("select '{SQL}'")).expect("a row");
            client
                .query(&format!("select {SQL}"))
                .expect_err("no such column");
            client.quit();
        }
    }
    let mut client = world.client(sidecar.address());
    client.start("teesql_read", database);
    client.send(&query(BODY));
    client.expect_refusal();
    let mut client = world.client(sidecar.address());
    client.start("teesql_read", database);
    client.send(&tagged(
        b'p',
        [READ_SECRET, "\0", BODY, "\0"].concat().as_bytes(),
    ));
    client.expect_refusal();
    let mut client = world.client(sidecar.address());
    client.send(&message::untagged(BODY.as_bytes()));
    client.expect_refusal();
}

fn inspect(sidecar: &Sidecar) {
    let lines = sidecar.lines();
    assert!(
        lines.len() > 10,
        "a log at trace level has more lines than {}",
        lines.len()
    );
    let hex = |text: &str| {
        text.bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let list = |text: &str| {
        let numbers: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
        numbers.join(", ")
    };
    let markers = SECRETS.into_iter().chain([SQL, PARAMETER, ROLE, BODY]);
    for marker in markers {
        // As text, escaped, in upper case, as hex of its bytes, and as Debug of a byte slice;
        // a part of it is too much as well.
        let part: String = marker.chars().take(10).collect();
        for shape in [
            part.clone(),
            part.to_uppercase(),
            hex(&part),
            list(&part),
            format!("{part:?}"),
        ] {
            let shape = shape.trim_matches('"');
            for line in &lines {
                assert!(
                    !line.contains(shape),
                    "{marker:?} shows as {shape:?} in: {line}"
                );
            }
        }
    }
}
