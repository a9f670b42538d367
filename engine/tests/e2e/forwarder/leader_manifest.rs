//! Tests of `--cluster`: the forwarder follows the leader that a signed manifest in DNS names.

use attest::manifest::{EthAddress, SigningKey, UnsignedManifest};
use engine::embed::{self, LeaderQuery};

use super::lifecycle::Session;
use crate::harness::READER;
use crate::harness::fake_server::FakeServer;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::name_server::NameServer;
use crate::harness::process::{TIMEOUT, lossy, poll_until, run, write_private};
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::tdx_fixture::{TdxFixture, now};

pub(crate) fn add(suite: &mut Suite) {
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::leader_manifest::follows_leader_changes",
        follows_leader_changes,
    );
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::leader_manifest::refuses_invalid_manifests",
        refuses_invalid_manifests,
    );
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::leader_manifest::follows_the_highest_valid_epoch",
        follows_highest_epoch,
    );
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::leader_manifest::refuses_another_instance",
        refuses_another_instance,
    );
    if suite.adds_driver_independent() {
        suite.add_requiring(
            &[Requirement::Knot],
            "forwarder::leader_manifest::a_program_resolves_the_leader",
            program_resolves,
        );
    }
    suite.add(
        "forwarder::leader_manifest::sign_and_verify",
        sign_and_verify,
    );
}

const CLUSTER: &str = "0xbd32b609057a1a4569558a571d535c8f1212b097";
const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER_KEY: &str = "2222222222222222222222222222222222222222222222222222222222222222";

fn key(text: &str) -> SigningKey {
    SigningKey::from_hex(text).expect("a key")
}

pub(super) fn draft(port: u16, epoch: u64) -> UnsignedManifest {
    UnsignedManifest {
        cluster: CLUSTER.parse().expect("an address"),
        // What the sidecar's event log proves.
        leader_instance: "1d".repeat(20).parse().expect("an instance"),
        leader_url: format!("https://leader.teesql.test:{port}")
            .parse()
            .expect("a URL"),
        epoch,
        valid_until: now() + 3600,
    }
}

/// The zone with the manifest `text` in strings of at most 255 bytes.
fn record(text: &str) -> String {
    let chunks = text.as_bytes().chunks(255);
    let strings: Vec<_> = chunks
        .map(|chunk| format!("\"{}\"", lossy(chunk)))
        .collect();
    format!(
        "_teesql-leader TXT ( {} )\nleader A 127.0.0.1\n",
        strings.join(" ")
    )
}

pub(super) fn signed(draft: &UnsignedManifest) -> String {
    record(&draft.sign(&key(KEY)).expect("a signature"))
}

pub(super) fn settings(tdx: &TdxFixture, fixture: &Fixture, dns: &NameServer) -> Settings {
    tdx.forwarder_settings(fixture)
        .set("TEESQL_CLUSTER", "teesql.test")
        .set("TEESQL_MANIFEST_SIGNER", &key(KEY).address().to_string())
        .set("TEESQL_DNS_SERVER", &dns.address())
}

/// What client packages call, without a forwarder.
fn program_resolves(_: &Fixture) {
    let (first, second) = (draft(5433, 1), draft(5434, 2));
    let dns = NameServer::start(&signed(&first));
    let query = || LeaderQuery {
        domain: "teesql.test".to_owned(),
        dns_server: Some(dns.address().parse().expect("an address")),
        timeout: TIMEOUT,
    };
    let signer = key(KEY).address();
    let resolve = |signer: EthAddress, cluster| {
        embed::block_on(embed::resolve_leader(query(), signer.0, cluster))
    };
    let manifest = resolve(signer, None).expect("a manifest");
    assert_eq!((manifest.epoch, manifest.port), (1, 5433));
    assert_eq!(manifest.host, "leader.teesql.test");
    assert_eq!(manifest.canonical_body, first.signed_text());
    let records = embed::block_on(embed::query_manifest_records(query()));
    let [record] = &records.expect("records")[..] else {
        panic!("not one record");
    };
    let parsed = embed::parse_manifest(record, signer.0, None).expect("a manifest");
    assert_eq!(parsed, manifest);

    dns.publish(&signed(&second));
    let next = poll_until(TIMEOUT, || {
        let next = resolve(signer, Some(CLUSTER)).expect("a manifest");
        (next.epoch == 2).then_some(next)
    });
    assert_eq!(next.expect("the next leader").port, 5434);
    let code = |result: Result<embed::Manifest, embed::Error>| {
        let error = result.expect_err("it is accepted");
        assert_eq!(error.kind(), embed::ErrorKind::Manifest);
        error.code()
    };
    let other = key(OTHER_KEY).address();
    assert_eq!(code(resolve(other, None)), "manifest_signature");
    let cluster = other.to_string();
    let refused = resolve(signer, Some(&cluster));
    assert_eq!(code(refused), "manifest_other_cluster");
    let expired = embed::parse_manifest(record, signer.0, Some(u64::MAX));
    assert_eq!(code(expired), "manifest_expired");
    dns.publish("other A 127.0.0.1\n");
    let missing = poll_until(TIMEOUT, || resolve(signer, None).err());
    assert_eq!(missing.expect("no manifest").code(), "no_manifest");
}

fn follows_leader_changes(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let (first, second) = (
        FakeServer::proxy_to(sidecar.address()),
        FakeServer::proxy_to(sidecar.address()),
    );
    let (a, b) = (first.address().port(), second.address().port());
    let dns = NameServer::start(&signed(&draft(a, 1)));
    let forwarder = Forwarder::start(&settings(&tdx, fixture, &dns));
    let mut old = Session::open(&forwarder);
    assert_eq!((first.accepted(), second.accepted()), (1, 0));

    // A manifest of several strings.
    let long = format!("https://leader.teesql.test:{b}/{}", "x".repeat(200));
    let next = UnsignedManifest {
        leader_url: long.parse().expect("a URL"),
        ..draft(b, 2)
    };
    assert!(signed(&next).len() > 2 * 255);
    dns.publish(&signed(&next));
    poll_until(TIMEOUT, || {
        forwarder.assert_reader_connects();
        (second.accepted() > 0).then_some(())
    })
    .expect("new connections go to the new leader");
    old.assert_responds();

    // DNS returns to the old epoch: the forwarder does not follow, and the driver reads why.
    dns.publish(&signed(&draft(a, 1)));
    let before = first.accepted();
    let output = poll_until(TIMEOUT, || {
        let output = forwarder.psql_select_1(READER);
        output.contains("FATAL").then_some(output)
    });
    let output = output.expect("the TTL has expired");
    assert!(
        output.contains("FATAL:  the manifest's epoch 1 is older than 2, which was seen before"),
        "{output}"
    );
    forwarder.await_reason("manifest_old_epoch");
    assert_eq!(first.accepted(), before);
    old.assert_responds();

    // A session ends with its leader.
    dns.publish(&signed(&next));
    drop(first);
    assert_eq!(old.0.read_to_end(), b"");

    let settings = settings(&tdx, fixture, &dns);
    resolves_again_after_failure(&settings, &dns, second, &sidecar, &next);
}

/// With a TTL of five minutes, the forwarder resolves the leader again after a failed connection.
fn resolves_again_after_failure(
    settings: &Settings,
    dns: &NameServer,
    leader: FakeServer,
    sidecar: &Sidecar,
    manifest: &UnsignedManifest,
) {
    let next_leader = FakeServer::proxy_to(sidecar.address());
    dns.publish(
        &signed(manifest)
            .replace(" TXT ", " 300 TXT ")
            .replace("leader A", "leader 300 A"),
    );
    let forwarder = Forwarder::start(settings);
    forwarder.assert_reader_connects();
    dns.publish(&signed(&draft(next_leader.address().port(), 3)));
    drop(leader);
    forwarder.assert_reader_connects();
    assert_eq!(next_leader.accepted(), 1);
}

/// Records that the forwarder must refuse, each with its reason code and the start of the text.
fn invalid_manifests() -> Vec<(String, &'static str, &'static str)> {
    let good = draft(5433, 7);
    let text = |draft: &UnsignedManifest| draft.sign(&key(KEY)).expect("a signature");
    let signed_by_another_key = record(&good.sign(&key(OTHER_KEY)).expect("a signature"));
    let expired = UnsignedManifest {
        valid_until: now() - 1,
        ..good.clone()
    };
    let far_future = UnsignedManifest {
        valid_until: now() + 30 * 86_400,
        ..good.clone()
    };
    let with_file_url =
        text(&good).replace("https://leader.teesql.test:5433", "file:///etc/passwd");
    let changed_after_signing = text(&good).replace("epoch=7", "epoch=8");
    let two_leaders = signed(&good) + &record(&text(&draft(5434, 7)));
    let many = (0..17).map(|epoch| record(&text(&draft(5433, epoch))));
    // Both are longer than the 1,232 bytes that the forwarder accepts over UDP: they use TCP.
    let padded = record(&(text(&good) + ";note=" + &"x".repeat(1300)));
    let too_long = record(&(text(&good) + ";note=" + &"x".repeat(3000)));
    vec![
        (
            String::new(),
            "no_manifest",
            "no leader manifest: _teesql-leader.teesql.test. has no TXT record",
        ),
        (
            signed_by_another_key,
            "manifest_signature",
            "manifest signature verification failed",
        ),
        (
            record(&changed_after_signing),
            "manifest_signature",
            "manifest signature verification failed",
        ),
        (signed(&expired), "manifest_expired", "manifest expired"),
        (
            signed(&far_future),
            "manifest_far_future",
            "the manifest is valid for longer than the accepted maximum of 604800 s",
        ),
        (
            record(&with_file_url),
            "manifest_leader_url",
            "the manifest's leader_url is refused: ",
        ),
        (
            two_leaders,
            "manifest_equivocation",
            "two manifests of epoch 7 name different leaders",
        ),
        (
            many.collect(),
            "many_manifests",
            "_teesql-leader.teesql.test. has more than 16 TXT records",
        ),
        (
            padded,
            "manifest_signature",
            "manifest signature verification failed",
        ),
        (
            too_long,
            "manifest_too_long",
            "the manifest has more than 2048 bytes",
        ),
        (
            record("v=1;nonsense"),
            "manifest_malformed",
            "malformed manifest: ",
        ),
    ]
}

fn refuses_invalid_manifests(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let dns = NameServer::start("");
    for (records, code, text) in invalid_manifests() {
        dns.publish(&records);
        let forwarder = Forwarder::start(&settings(&tdx, fixture, &dns));
        let output = forwarder.psql_select_1(READER);
        assert!(
            output.contains(&format!("FATAL:  {text}")),
            "{code}: {output}"
        );
        forwarder.await_reason(code);
    }
}

/// There are records of several publishers, and others.
fn follows_highest_epoch(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let [old, new] = [(); 2].map(|()| FakeServer::proxy_to(sidecar.address()));
    let expired = UnsignedManifest {
        valid_until: now() - 1,
        ..draft(9, 9)
    };
    let forged = draft(9, 10).sign(&key(OTHER_KEY)).expect("a signature");
    let zone = [
        signed(&draft(old.address().port(), 3)),
        record("v=spf1 -all"),
        signed(&expired),
        signed(&draft(new.address().port(), 4)),
        record(&forged),
    ];
    let dns = NameServer::start(&zone.concat());
    let forwarder = Forwarder::start(&settings(&tdx, fixture, &dns));
    forwarder.assert_reader_connects();
    assert_eq!((old.accepted(), new.accepted()), (0, 1));
}

/// The address of the leader leads to another instance of the same application.
fn refuses_another_instance(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let port = sidecar.address().port();
    let other = UnsignedManifest {
        leader_instance: "ab".repeat(20).parse().expect("an instance"),
        ..draft(port, 1)
    };
    let dns = NameServer::start(&signed(&other));
    let forwarder = Forwarder::start(&settings(&tdx, fixture, &dns));
    let output = forwarder.psql_select_1(READER);
    let text = format!(
        "FATAL:  the leader manifest names instance {}, but the server proves {}",
        "ab".repeat(20),
        "1d".repeat(20)
    );
    assert!(output.contains(&text), "{output}");
    forwarder.await_reason("leader_mismatch");
    // The publisher corrects it.
    dns.publish(&signed(&draft(port, 2)));
    poll_until(TIMEOUT, || {
        (!forwarder.psql_select_1(READER).contains("FATAL")).then_some(())
    })
    .expect("the right leader is accepted");
}

/// The commands with which an operator signs and verifies a manifest.
fn sign_and_verify(fixture: &Fixture) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    write_private(&file, KEY);
    let file = file.to_str().expect("UTF-8").to_owned();
    let bare = Settings::for_forwarder(fixture.variant);
    let until = (now() + 600).to_string();
    let url =
        "https://ea23198e3419ebbb240571a29d0112d9bcbe69c0-5433.dstack-base-prod9.phala.network";
    let sign = [
        "manifest",
        "sign",
        "--key",
        &file,
        "--cluster",
        CLUSTER,
        "--leader-instance",
        "ea23",
        "--leader-url",
        url,
        "--epoch",
        "42",
        "--valid-until",
        &until,
    ];
    let output = run(bare.forwarder_command(&sign), TIMEOUT);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = lossy(&output.stdout);
    let signer = key(KEY).address().to_string();
    let verify = ["manifest", "verify", text.trim(), "--signer", &signer];
    let output = lossy(&run(bare.forwarder_command(&verify), TIMEOUT).stdout);
    assert!(
        output.contains("\nepoch = 42\n") && output.contains("network:443\n"),
        "{output}"
    );
    let late = [&verify[..], &["--at", "9999999999"]].concat();
    let output = run(bare.forwarder_command(&late), TIMEOUT);
    assert_eq!(output.status.code(), Some(1));
    assert!(lossy(&output.stderr).contains("manifest expired (manifest_expired)"));
    let other = key(OTHER_KEY).address().to_string();
    let output = run(
        bare.forwarder_command(&["manifest", "verify", text.trim(), "--signer", &other]),
        TIMEOUT,
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(!format!("{output:?}").contains(KEY), "the key was printed");
}
