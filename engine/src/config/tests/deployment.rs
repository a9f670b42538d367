//! What a deployment must prove or hide: the launch token, derived secrets, private files, simulator mode.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use super::{Config, Mode, SECRET, Start};

#[test]
fn settings_without_the_launch_token_are_refused() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const DIGEST: &str = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9";
    let mut start = Start::minimal();
    start.set("LAUNCH_TOKEN_SHA256", DIGEST);
    let missing = "launch_token: not set: use TEESQL_LAUNCH_TOKEN or …_FILE, --launch-token-file or the TOML key \
                   launch_token";
    assert_eq!(start.mistakes(), [missing]);
    start.set("LAUNCH_TOKEN", &TOKEN.to_uppercase());
    let mistakes = start.mistakes();
    assert!(
        mistakes.len() == 1 && mistakes[0].starts_with("launch_token: its SHA-256 is not"),
        "{mistakes:?}"
    );
    assert!(!mistakes[0].contains(&TOKEN.to_uppercase()[..8]));
    start.set("LAUNCH_TOKEN", "hunter2");
    let short = start.mistakes();
    assert!(short[0].contains("at least 32 characters") && !short[0].contains("hunter2"));
    start.set("LAUNCH_TOKEN", TOKEN);
    start.config();
    let file = start.file("token", &format!("{TOKEN}\n"));
    start.unset("LAUNCH_TOKEN").set("LAUNCH_TOKEN_FILE", &file);
    start.config();
    for malformed in ["", "3eb1", &DIGEST.replace('3', "x")] {
        start.set("LAUNCH_TOKEN_SHA256", malformed);
        let mistakes = start.mistakes();
        assert!(
            mistakes[0].ends_with("expected a SHA-256: 64 hex characters"),
            "{mistakes:?}"
        );
    }
    start.unset("LAUNCH_TOKEN_SHA256");
    assert_eq!(
        start.mistakes(),
        ["launch_token_sha256: not set, but launch_token is"]
    );
}

#[test]
fn derived_secrets_exclude_configured_ones() {
    let mut start = Start::minimal();
    start.set("CLUSTER_SECRETS", "derived");
    let set = |key| {
        format!(
            "{key}: set, although cluster_secrets = derived, which takes it from the guest agent"
        )
    };
    assert_eq!(
        start.mistakes(),
        [set("read_secret"), set("readwrite_secret")]
    );
    start.unset("READ_SECRET").unset("READWRITE_SECRET");
    let config = start.config();
    assert!(config.derive_secrets && config.secrets.read.is_none());
    start.set("CLUSTER_SECRETS", "derive");
    assert!(start.mistakes()[0].ends_with("expected configured or derived"));
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let mut start = Start::minimal();
    let set_mode = |path: &str, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let secret = start.file("secret", SECRET);
    start.unset("READ_SECRET").set("READ_SECRET_FILE", &secret);
    set_mode(&secret, 0o644);
    let mistakes = start.mistakes();
    assert!(
        mistakes.len() == 1 && mistakes[0].contains("it has the mode 0644"),
        "{mistakes:?}"
    );
    set_mode(&secret, 0o400);
    start.config();

    let toml = start.file("sidecar.toml", "shards = 1\n");
    set_mode(&toml, 0o644);
    start.set("CONFIG", &toml);
    start.config();
    for text in [
        format!("pg_password_read = \"{SECRET}\"\n"),
        // Not a setting of the sidecar, and a secret all the same.
        "trust_authority_key = \"k\"\n".to_owned(),
    ] {
        std::fs::write(&toml, text).unwrap();
        let mistakes = start.mistakes();
        assert!(
            mistakes.len() == 1
                && mistakes[0].starts_with("sidecar.toml: holds a secret: it has the mode 0644"),
            "{mistakes:?}"
        );
        assert!(!mistakes[0].contains(SECRET));
    }
    set_mode(&toml, 0o600);
    start.config();
}

/// A configuration in simulator mode with these further settings.
fn simulator(settings: &[(&str, &str)]) -> Start {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS")
        .set("SIMULATOR_ENDPOINT", "http://127.0.0.1:8090");
    for (name, value) in settings {
        start.set(name, value);
    }
    start
}

#[test]
fn simulator_mode_beyond_loopback_needs_confirmation() {
    assert!(simulator(&[]).config().passwordless_superuser);
    let listen = ("LISTEN", "0.0.0.0:5433");
    let mistakes = simulator(&[listen]).mistakes();
    assert!(
        mistakes.len() == 1 && mistakes[0].starts_with("listen = 0.0.0.0:5433 in simulator mode"),
        "{mistakes:?}"
    );
    let confirmed = simulator(&[listen, ("ALLOW_UNATTESTED_CLIENTS", "true")]).config();
    assert!(!confirmed.passwordless_superuser);
    assert!(
        !confirmed.warnings[0].contains("without a password"),
        "{:?}",
        confirmed.warnings
    );
}

#[test]
fn a_password_is_needed_where_attestation_was_asked_for() {
    let config = simulator(&[("REQUIRE_CLIENT_ATTESTATION", "true")]).config();
    assert!(!config.passwordless_superuser && config.attestation.is_some());
    assert_eq!(config.mode, Mode::Simulator);
}

#[test]
fn simulator_mode_is_refused_in_a_tdx_guest() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("dev")).unwrap();
    let mistakes = |start: Start| {
        let layers = start.layers().on_machine(root.path());
        Config::from_layers(&layers).map_or_else(|errors| errors.0, |_| Vec::new())
    };
    assert!(mistakes(simulator(&[])).is_empty());
    std::fs::write(root.path().join("dev/tdx_guest"), "").unwrap();
    let confirmed = simulator(&[("ALLOW_UNATTESTED_CLIENTS", "true")]);
    assert!(mistakes(confirmed)[0].contains("this machine is a TDX guest"));
    assert!(mistakes(Start::minimal()).is_empty());
}
