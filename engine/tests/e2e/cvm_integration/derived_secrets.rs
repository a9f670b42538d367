//! Tests of cluster secrets that the guest agent derives.

use std::net::SocketAddr;

use attest::mock::Agent;
use nix::sys::signal::Signal;

use super::derived_key;
use crate::harness::cluster::unused_port;
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, lossy, poll_until, run, run_successfully};
use crate::harness::settings::{Settings, sidecar_command};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::derived_secrets::open_the_roles",
            open_the_roles,
        );
        suite.add(
            "cvm_integration::derived_secrets::replace_configured_ones_on_sighup",
            replace_configured_ones,
        );
        suite.add(
            "cvm_integration::derived_secrets::are_printed_inside",
            are_printed,
        );
    }
}

const PATHS: [&str; 2] = ["cluster/read", "cluster/readwrite"];

fn secrets(agent: &Agent) -> [String; 2] {
    PATHS.map(|path| derived_key(agent, path))
}

fn derived(settings: Settings) -> Settings {
    settings
        .without("TEESQL_READ_SECRET")
        .without("TEESQL_READWRITE_SECRET")
        .set("TEESQL_CLUSTER_SECRETS", "derived")
}

fn login(tdx: &TdxFixture, sidecar: &Sidecar, role: &str, secret: &str) -> Result<(), String> {
    let mut client = tls::connect(Some(tdx), sidecar);
    let result = client.login(role, "via_scram", secret);
    result.map(drop).map_err(|error| error.code)
}

fn open_the_roles(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    // With files for the certificate, only the secrets need the agent.
    let settings = derived(tdx.attested_sidecar_settings(fixture))
        .set("TEESQL_GUEST_AGENT", &tdx.path("dstack.sock"))
        .set("TEESQL_LOG", "trace");
    let admin = SocketAddr::from(([127, 0, 0, 1], unused_port()));
    let waiting = Sidecar::spawn(
        &settings
            .clone()
            .set("TEESQL_ADMIN_LISTEN", &admin.to_string()),
    );
    waiting.await_message("no cluster secrets from the guest agent yet");
    http::await_unready(admin, "identity", "no guest agent");
    let agent = tdx.start_agent();
    waiting.await_message("listening");
    drop(waiting);

    let sidecar = Sidecar::start(&settings);
    let [read, readwrite] = secrets(&agent);
    let refused = Err("28P01".to_owned());
    assert_eq!(login(&tdx, &sidecar, "teesql_read", &read), Ok(()));
    assert_eq!(login(&tdx, &sidecar, "teesql_read", &readwrite), Ok(()));
    assert_eq!(
        login(&tdx, &sidecar, "teesql_readwrite", &readwrite),
        Ok(())
    );
    assert_eq!(login(&tdx, &sidecar, "teesql_readwrite", &read), refused);
    assert_eq!(login(&tdx, &sidecar, "teesql_read", READ_SECRET), refused);

    // Without the agent, a reload changes nothing.
    drop(agent);
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("configuration not reloaded");
    assert_eq!(login(&tdx, &sidecar, "teesql_read", &read), Ok(()));
    let log = sidecar.log_lines().join("\n");
    for secret in [&read, &readwrite] {
        assert!(!log.contains(&secret[..16]), "a secret is logged");
    }
}

fn replace_configured_ones(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent();
    let file = tdx.path("sidecar.toml");
    let write = |text: String| crate::harness::process::write_private(&file, &text);
    write(format!(
        "read_secret = \"{READ_SECRET}\"\nreadwrite_secret = \"{READ_SECRET}\"\n"
    ));
    let settings = tdx
        .agent_settings(fixture)
        .without("TEESQL_READ_SECRET")
        .without("TEESQL_READWRITE_SECRET")
        .set("TEESQL_CONFIG", &file);
    let sidecar = Sidecar::start(&settings);
    assert_eq!(login(&tdx, &sidecar, "teesql_read", READ_SECRET), Ok(()));
    write("cluster_secrets = \"derived\"\nsecret_overlap = \"off\"\n".to_owned());
    sidecar.signal(Signal::SIGHUP);
    let [read, _] = secrets(&agent);
    let used = || login(&tdx, &sidecar, "teesql_read", &read).ok();
    poll_until(TIMEOUT, used).expect("the derived secret opens the role");
    sidecar.await_message("the previous cluster secrets are no longer accepted");
    let refused = Err("28P01".to_owned());
    assert_eq!(login(&tdx, &sidecar, "teesql_read", READ_SECRET), refused);
}

fn are_printed(_: &Fixture) {
    let tdx = TdxFixture::new();
    let socket = tdx.path("dstack.sock");
    let print = || sidecar_command(&["secret", "--derived", "--guest-agent", &socket], &[]);
    let missing = run(print(), TIMEOUT);
    assert_eq!(
        missing.status.code(),
        Some(69),
        "{}",
        lossy(&missing.stderr)
    );
    assert!(missing.stdout.is_empty());
    let agent = tdx.start_agent();
    let [read, readwrite] = secrets(&agent);
    assert_eq!(
        run_successfully(print(), TIMEOUT),
        format!("read_secret = \"{read}\"\nreadwrite_secret = \"{readwrite}\"\n")
    );
    let print = |arguments: &[&str]| {
        let arguments = [arguments, &["--guest-agent", &socket]].concat();
        run_successfully(sidecar_command(&arguments, &[]), TIMEOUT)
    };
    for (role, path) in [
        ("replicator", "pg/replicator"),
        ("rewind", "pg/rewind"),
        ("backup", "backup/encryption"),
        ("superuser", "pg/superuser"),
    ] {
        assert_eq!(print(&["password", role]), derived_key(&agent, path) + "\n");
    }
    let key = super::derived_key_for(&agent, "manifest", "teesql-manifest-sign");
    let key = attest::manifest::SigningKey::from_hex(&key).expect("a key");
    let address = print(&["manifest-address"]);
    assert_eq!(address, key.address().to_checksummed() + "\n");
    assert_ne!(address, address.to_lowercase());
}
