//! The certificate that the guest agent gives, as clients see it.

use std::fs;

use attest::certificate::Leaf;
use attest::evidence::UnboundEvidence;
use attest::mock::AgentListen;

use super::{Method, Town, teesql, tls};
use crate::process::{PATIENCE, lossy, run, succeed};
use crate::sidecar::Sidecar;
use crate::stage::READ_SECRET;
use crate::suite::{Suite, World};

const READER: (&str, &str) = ("teesql_read", READ_SECRET);

pub(super) fn add(suite: &mut Suite) {
    for (name, over_http) in [("socket", false), ("http", true)] {
        let name = format!("citizen::verify_full_with_an_agent_by_{name}");
        suite.add(&name, move |world| verify_full(world, over_http));
    }
    suite.add("citizen::verify_says_accepted", verify_by_hand);
}

/// Mode B: the CA that `ca` prints, and the names that were asked for.
fn verify_full(world: &World, over_http: bool) {
    let town = Town::new();
    let agent = town.agent_at(match over_http {
        true => AgentListen::Tcp,
        false => AgentListen::Unix(town.socket()),
    });
    let place = agent.endpoint().to_string();
    let names = "db.example,localhost,127.0.0.1";
    let settings = town
        .settings(world)
        .set("TEESQL_GUEST_AGENT", &place)
        .set("TEESQL_CERTIFICATE_SUBJECT", "db one")
        .set("TEESQL_CERTIFICATE_ALT_NAMES", names);
    let sidecar = Sidecar::start(&settings);
    let ca = succeed(teesql(&["ca", "--guest-agent", &place], &[]), PATIENCE);
    assert_eq!(ca.matches("BEGIN CERTIFICATE").count(), 1, "{ca}");
    fs::write(town.file("printed.pem"), &ca).expect("a file");

    let (enters, refused) = ("teesql_read\n", "does not match host name");
    for (name, wanted) in [
        ("localhost", enters),
        ("127.0.0.1", enters),
        ("db.example", enters),
        ("other.example", refused),
    ] {
        let mut psql = town.psql(&sidecar, READER, "select current_user");
        psql.env("PGHOST", name);
        psql.env("PGSSLROOTCERT", town.file("printed.pem"));
        let output = run(psql, PATIENCE);
        let said = lossy(&output.stdout) + &lossy(&output.stderr);
        assert!(said.contains(wanted), "{name}: {said}");
    }
    check_shown(&sidecar);
    // One for the sidecar, and one without a quote for `ca`.
    assert_eq!(agent.requests(Method::GetTlsKey), 2);
    assert_eq!(agent.requests(Method::GetQuote), 0);
}

/// What the sidecar shows carries evidence that is bound to its key.
fn check_shown(sidecar: &Sidecar) {
    let chain = tls::shown(sidecar.address());
    assert_eq!(chain.len(), 2, "leaf and CA");
    let leaf = Leaf::parse(&chain[0]).expect("a leaf");
    let evidence = UnboundEvidence::from_extensions(leaf.extensions()).expect("evidence");
    evidence.check_binding(leaf.spki()).expect("of its key");
    let left = leaf.not_after() - super::now();
    assert!((86_000..=86_400).contains(&left), "not a day: {left} s");
}

/// `teesql-sidecar verify` takes the sidecar for what it is, and Intel's root for
/// nobody's quote here.
fn verify_by_hand(world: &World) {
    let town = Town::new();
    let _agent = town.agent();
    let sidecar = Sidecar::start(&town.settings(world));
    let target = format!("localhost:{}", sidecar.port());
    let (root, pccs) = (town.path("root.pem"), town.pccs.url());
    let intel = ["verify", &target, "--pccs", &pccs];
    let mock = [&intel[..], &["--dangerous-tdx-root-ca", &root]].concat();
    let output = run(teesql(&mock, &[]), PATIENCE);
    let said = lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.lines().last(), Some("ACCEPTED"), "{said}");

    let output = run(teesql(&intel, &[]), PATIENCE);
    let said = lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("REFUSED: bad_signature"), "{said}");
}
