//! `--cluster`: the leader that a signed manifest names.

use attest::manifest::{SigningKey, UnsignedManifest};

use super::lab::{Lab, now};
use super::life::Session;
use super::name_server::NameServer;
use super::run::{Forwarder, Settings};
use super::through::READER;
use crate::fake::Fake;
use crate::process::{PATIENCE, lossy, poll, run};
use crate::suite::{Need, Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.add_with(&[Need::Knot], "forward::leader::changes", changes);
    suite.add_with(&[Need::Knot], "forward::leader::refused_manifests", refused);
    suite.add("forward::leader::sign_and_verify", sign_and_verify);
}

const CLUSTER: &str = "0xbd32b609057a1a4569558a571d535c8f1212b097";
const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER_KEY: &str = "2222222222222222222222222222222222222222222222222222222222222222";

fn key(text: &str) -> SigningKey {
    SigningKey::from_hex(text).expect("a key")
}

fn draft(port: u16, epoch: u64) -> UnsignedManifest {
    UnsignedManifest {
        cluster: CLUSTER.parse().expect("an address"),
        leader_instance: format!("{epoch:040x}").parse().expect("an instance"),
        leader_url: format!("https://leader.teesql.test:{port}")
            .parse()
            .expect("a URL"),
        epoch,
        valid_until: now() + 3600,
    }
}

/// As a zone file has it: strings of at most 255 bytes.
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

fn signed(draft: &UnsignedManifest) -> String {
    record(&draft.sign(&key(KEY)).expect("a signature"))
}

fn settings(lab: &Lab, world: &World, dns: &NameServer) -> Settings {
    lab.settings(world)
        .set("TEESQL_CLUSTER", "teesql.test")
        .set("TEESQL_MANIFEST_SIGNER", &key(KEY).address().to_string())
        .set("TEESQL_DNS_SERVER", &dns.address())
}

fn changes(world: &World) {
    let lab = Lab::new();
    let sidecar = lab.sidecar(world);
    let (first, second) = (
        Fake::counting(sidecar.address()),
        Fake::counting(sidecar.address()),
    );
    let (a, b) = (first.address().port(), second.address().port());
    let dns = NameServer::start(&signed(&draft(a, 1)));
    let forwarder = Forwarder::start(&settings(&lab, world, &dns));
    let mut old = Session::open(&forwarder);
    assert_eq!((first.accepted(), second.accepted()), (1, 0));

    // In several strings.
    let long = format!("https://leader.teesql.test:{b}/{}", "x".repeat(200));
    let next = UnsignedManifest {
        leader_url: long.parse().expect("a URL"),
        ..draft(b, 2)
    };
    assert!(signed(&next).len() > 2 * 255);
    dns.publish(&signed(&next));
    poll(PATIENCE, || {
        assert_eq!(forwarder.ask(READER), "1\n");
        (second.accepted() > 0).then_some(())
    })
    .expect("new connections go to the new leader");
    old.ask();

    // DNS goes back: nobody follows. The old epoch's text is for the driver.
    dns.publish(&signed(&draft(a, 1)));
    let before = first.accepted();
    let said = poll(PATIENCE, || {
        let said = forwarder.ask(READER);
        said.contains("FATAL").then_some(said)
    });
    let said = said.expect("the TTL is over");
    assert!(
        said.contains("FATAL:  the manifest's epoch 1 is older than 2, which was seen before"),
        "{said}"
    );
    forwarder.await_reason("manifest_old_epoch");
    assert_eq!(first.accepted(), before);
    old.ask();

    // A session lives as long as its leader.
    dns.publish(&signed(&next));
    drop(first);
    assert_eq!(old.0.read_to_end(), b"");

    // A TTL of five minutes, and a leader that fails once.
    let third = Fake::counting(sidecar.address());
    dns.publish(
        &signed(&next)
            .replace(" TXT ", " 300 TXT ")
            .replace("leader A", "leader 300 A"),
    );
    let fresh = Forwarder::start(&settings(&lab, world, &dns));
    assert_eq!(fresh.ask(READER), "1\n");
    dns.publish(&signed(&draft(third.address().port(), 3)));
    drop(second);
    assert_eq!(fresh.ask(READER), "1\n");
    assert_eq!(third.accepted(), 1);
}

fn refused(world: &World) {
    let lab = Lab::new();
    let good = draft(5433, 7);
    let text = |draft: &UnsignedManifest| draft.sign(&key(KEY)).expect("a signature");
    let wrong = record(&good.sign(&key(OTHER_KEY)).expect("a signature"));
    let late = UnsignedManifest {
        valid_until: now() - 1,
        ..good.clone()
    };
    let far = UnsignedManifest {
        valid_until: now() + 30 * 86_400,
        ..good.clone()
    };
    let file = text(&good).replace("https://leader.teesql.test:5433", "file:///etc/passwd");
    let changed = text(&good).replace("epoch=7", "epoch=8");
    let twice = signed(&good) + &record(&text(&draft(5434, 8)));
    // By UDP 1,232 bytes are asked for: both come by TCP.
    let padded = record(&(text(&good) + ";note=" + &"x".repeat(1300)));
    let huge = record(&(text(&good) + ";note=" + &"x".repeat(3000)));
    let dns = NameServer::start("");
    for (records, code, text) in [
        (
            String::new(),
            "no_manifest",
            "no leader manifest: _teesql-leader.teesql.test. has no TXT record",
        ),
        (
            wrong,
            "manifest_signature",
            "manifest signature verification failed",
        ),
        (
            record(&changed),
            "manifest_signature",
            "manifest signature verification failed",
        ),
        (signed(&late), "manifest_expired", "manifest expired"),
        (
            signed(&far),
            "manifest_far_future",
            "the manifest is valid for longer than 604800 s",
        ),
        (
            record(&file),
            "manifest_leader_url",
            "the manifest's leader_url is refused: ",
        ),
        (
            twice,
            "many_manifests",
            "_teesql-leader.teesql.test. has more than one TXT record",
        ),
        (
            padded,
            "manifest_signature",
            "manifest signature verification failed",
        ),
        (
            huge,
            "manifest_too_long",
            "the manifest has more than 2048 bytes",
        ),
        (
            record("v=1;nonsense"),
            "manifest_malformed",
            "malformed manifest: ",
        ),
    ] {
        dns.publish(&records);
        let forwarder = Forwarder::start(&settings(&lab, world, &dns));
        let said = forwarder.ask(READER);
        assert!(said.contains(&format!("FATAL:  {text}")), "{code}: {said}");
        forwarder.await_reason(code);
    }
}

/// What operators type, and what the forwarder then follows.
fn sign_and_verify(_: &World) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, KEY).expect("a key");
    let file = file.to_str().expect("UTF-8").to_owned();
    let bare = Settings::new(crate::sidecar::Driver::Epoll);
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
    let output = run(bare.command(&sign), PATIENCE);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = lossy(&output.stdout);
    let signer = key(KEY).address().to_string();
    let verify = ["manifest", "verify", text.trim(), "--signer", &signer];
    let said = lossy(&run(bare.command(&verify), PATIENCE).stdout);
    assert!(
        said.contains("\nepoch = 42\n") && said.contains("network:443\n"),
        "{said}"
    );
    let late = [&verify[..], &["--at", "9999999999"]].concat();
    let output = run(bare.command(&late), PATIENCE);
    assert_eq!(output.status.code(), Some(1));
    assert!(lossy(&output.stderr).contains("manifest expired (manifest_expired)"));
    let other = key(OTHER_KEY).address().to_string();
    let output = run(
        bare.command(&["manifest", "verify", text.trim(), "--signer", &other]),
        PATIENCE,
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(!format!("{output:?}").contains(KEY), "the key is shown");
}
