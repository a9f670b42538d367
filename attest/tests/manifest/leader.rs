//! The leader's URL and instance id.

use attest::manifest::{
    LeaderInstance, LeaderUrl, MAX_LEADER_URL_LEN, Manifest, ManifestError, UnsignedManifest,
};

use crate::{draft, golden, key, verified};

#[test]
fn url_gives_host_and_port() {
    for (url, target) in [
        ("https://leader.example", "leader.example:443"),
        ("http://leader.example", "leader.example:80"),
        ("https://leader.example:5433", "leader.example:5433"),
        ("HTTPS://Leader.Example:5433/", "leader.example:5433"),
        (
            "https://leader.example:443/path?query=1",
            "leader.example:443",
        ),
        ("https://10.0.0.1:5433", "10.0.0.1:5433"),
        ("https://[2001:DB8::1]", "[2001:db8::1]:443"),
        ("http://[::1]:5433", "[::1]:5433"),
    ] {
        let url: LeaderUrl = url.parse().unwrap();
        assert_eq!(url.target().to_string(), target);
    }
    let six: LeaderUrl = "https://[::1]".parse().unwrap();
    assert_eq!((six.target().host(), six.target().port()), ("::1", 443));
}

#[test]
fn invalid_urls_are_refused() {
    let long = format!("https://leader.example/{}", "a".repeat(MAX_LEADER_URL_LEN));
    for url in [
        "",
        "leader.example",
        "leader.example:5433",
        "//leader.example",
        "/etc/passwd",
        "file:///etc/passwd",
        "file://leader.example/etc/passwd",
        "ftp://leader.example",
        "ws://leader.example",
        "postgres://leader.example:5433",
        "unix:/run/postgres.sock",
        "data:text/plain,x",
        "javascript:1",
        "https:",
        "https://",
        "https:leader.example",
        "https:/leader.example",
        "https:///leader.example",
        "https://:5433",
        "https://leader.example:0",
        "https://leader.example:65536",
        "https://leader.example:x",
        "https://user@leader.example",
        "https://user:word@leader.example",
        "https://:word@leader.example",
        "https://leader.example#part",
        "https://leader.example\\@evil.example",
        "https:\\\\leader.example",
        "https://leader .example",
        "https://leader.example;x",
        "https://lea\tder.example",
        "https://[::1",
        "https://a%00b.example",
        "https://1.2.3.4.5",
        &long,
    ] {
        let error = url.parse::<LeaderUrl>().unwrap_err();
        assert_eq!(error.code(), "manifest_leader_url", "{url}");
    }
}

#[test]
fn urls_in_records_are_validated() {
    let good = draft().leader_url.as_str().to_owned();
    for url in ["file:///etc/passwd", "https://user@leader.example"] {
        let txt = golden().replace(&good, url);
        let error = Manifest::parse(&txt).unwrap_err();
        assert!(matches!(error, ManifestError::LeaderUrl(_)), "{error}");
    }
}

#[test]
fn url_is_signed_without_normalization() {
    let leader_url: LeaderUrl = "https://Leader.Example:443/a".parse().unwrap();
    let draft = UnsignedManifest {
        leader_url,
        ..draft()
    };
    let txt = draft.sign(&key()).unwrap();
    let unverified = Manifest::parse(&txt).unwrap();
    assert_eq!(unverified.signed_text(), draft.signed_text());
    assert!(txt.contains(";leader_url=https://Leader.Example:443/a;"));
}

#[test]
fn instance_may_be_a_dstack_instance_id() {
    let manifest = verified(|_| ());
    let id = manifest.leader_instance().instance_id().unwrap();
    assert_eq!(id.to_string(), manifest.leader_instance().as_str());
    let other: LeaderInstance = "ABCD".parse().unwrap();
    assert_eq!((other.as_str(), other.instance_id()), ("abcd", None));
}
