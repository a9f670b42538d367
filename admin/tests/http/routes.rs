//! What each endpoint says.

use std::io::Write;
use std::time::Duration;

use admin::{Class, Endpoint, Settings};
use serde_json::json;

use crate::client::{connect, get, request};
use crate::harness::{Conduct, Stage};

#[test]
fn health_and_index_are_text() {
    let stage = Stage::new(Conduct::Good);
    let health = get(stage.address(), "/health");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let index = get(stage.address(), "/");
    for path in ["/health", "/ready", "/attestation", "/metrics"] {
        assert!(index.body.contains(path), "{index:?}");
    }
    for answer in [health, index] {
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("connection"), Some("close"));
    }
}

#[test]
fn ready_follows_the_latches() {
    let stage = Stage::new(Conduct::Good);
    let ready = get(stage.address(), "/ready");
    let check = json!({ "name": "identity", "ready": false, "reason": "no certificate yet" });
    let expected = json!({ "ready": false, "mode": "simulator", "checks": [check] });
    assert_eq!((ready.status, ready.json()), (503, expected));
    assert_eq!(ready.header("cache-control"), Some("no-store"));

    stage.latch.ready();
    let ready = get(stage.address(), "/ready");
    let check = json!({ "name": "identity", "ready": true, "reason": null });
    let expected = json!({ "ready": true, "mode": "simulator", "checks": [check] });
    assert_eq!((ready.status, ready.json()), (200, expected));

    stage.latch.not_ready("the certificate ends");
    let ready = get(stage.address(), "/ready");
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["checks"][0]["reason"], "the certificate ends");
    assert_eq!(get(stage.address(), "/health").status, 200);
}

#[test]
fn metrics_come_from_the_source_on_the_admin_thread() {
    let stage = Stage::new(Conduct::Good);
    let metrics = get(stage.address(), "/metrics");
    assert_eq!(metrics.status, 200);
    let format = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(metrics.header("content-type"), Some(format));
    assert_eq!(metrics.body, "connections 1\n# thread Some(\"admin\")\n");
}

#[test]
fn head_is_get_without_its_body() {
    let stage = Stage::new(Conduct::Good);
    for target in ["/health", "/ready", "/metrics", "/attestation", "/"] {
        let head = format!("HEAD {target} HTTP/1.1\r\nHost: sidecar\r\n\r\n");
        let head = request(stage.address(), &head);
        let got = get(stage.address(), target);
        assert_eq!((head.status, head.body.as_str()), (got.status, ""));
        let length = head.header("content-length").unwrap();
        // The count of connections in it has risen meanwhile, but not to two digits.
        assert_eq!(length, got.body.len().to_string());
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let stage = Stage::new(Conduct::Good);
    for target in [
        "/x",
        "/health/",
        "/HEALTH",
        "//health",
        "/attestation/..",
        "/%68ealth",
    ] {
        let answer = get(stage.address(), target);
        assert_eq!(answer.status, 404, "{target}");
        assert!(!answer.body.contains(target), "{answer:?}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
        let bytes = format!("{method} /attestation HTTP/1.1\r\nHost: sidecar\r\n\r\n");
        let answer = request(stage.address(), &bytes);
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(stage.actor.calls(), 0);
}

#[test]
fn a_nonce_is_read_strictly() {
    let stage = Stage::new(Conduct::Good);
    let long = format!("nonce={}", "ab".repeat(33));
    let wrong = [
        "",
        "nonce",
        "nonce=",
        "nonce=a",
        "nonce=xy",
        "nonce=aa&nonce=bb",
        "nonce=aa&x=1",
        "x=1",
        "nonce=%61%61",
        &long,
    ];
    for query in wrong {
        let answer = get(stage.address(), &format!("/attestation?{query}"));
        assert_eq!(answer.status, 400, "{query}");
        assert!(!answer.error().is_empty());
    }
    assert_eq!(stage.actor.calls(), 0);
    let nonce = "5A".repeat(32);
    let answer = get(stage.address(), &format!("/attestation?nonce={nonce}"));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["nonce"], nonce.to_lowercase());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn reports_without_nonce_are_shared_and_others_have_to_wait() {
    let stage = Stage::new(Conduct::Good);
    let (first, second) = (
        get(stage.address(), "/attestation"),
        get(stage.address(), "/attestation"),
    );
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.json(), second.json());
    let limited = get(stage.address(), "/attestation?nonce=ab");
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    assert!(!limited.error().is_empty());
    assert_eq!(stage.actor.calls(), 1);

    let stats = stage.server.stats();
    assert_eq!((stats.reports_made(), stats.reports_shared()), (1, 1));
    assert_eq!((stats.reports_limited(), stats.reports_failed()), (1, 0));
    assert_eq!(stats.requests(Endpoint::Attestation, Class::Success), 2);
    assert_eq!(stats.requests(Endpoint::Attestation, Class::ClientError), 1);
}

#[test]
fn the_source_says_why_there_is_no_report_and_is_not_asked_again_at_once() {
    let stage = Stage::new(Conduct::Failing);
    let failed = get(stage.address(), "/attestation");
    assert_eq!(
        (failed.status, failed.error().as_str()),
        (503, "the guest agent is gone")
    );
    assert_eq!(get(stage.address(), "/attestation").status, 429);
    assert_eq!(stage.actor.calls(), 1);
    let stats = stage.server.stats();
    assert_eq!(stats.requests(Endpoint::Attestation, Class::ServerError), 1);
    assert_eq!(stats.reports_failed(), 1);
}

#[test]
fn a_source_that_hangs_is_given_up_while_the_others_answer() {
    let settings = Settings {
        attestation_deadline: Duration::from_millis(500),
        ..Stage::settings()
    };
    let stage = Stage::with(Conduct::Hanging, settings);
    let address = stage.address();
    let waiter = std::thread::spawn(move || get(address, "/attestation"));
    stage.wait_for_quote();
    assert_eq!(get(address, "/health").status, 200);
    assert_eq!(get(address, "/attestation?nonce=ab").status, 429);
    let late = waiter.join().unwrap();
    assert_eq!(
        (late.status, late.error().as_str()),
        (504, "no quote was made in time")
    );
    assert_eq!(stage.actor.calls(), 1);
}

#[test]
fn a_client_that_leaves_cancels_nothing() {
    let stage = Stage::new(Conduct::Good);
    let mut leaver = connect(stage.address());
    leaver
        .write_all(b"GET /attestation HTTP/1.0\r\n\r\n")
        .unwrap();
    stage.wait_for_quote();
    drop(leaver);
    let report = get(stage.address(), "/attestation");
    assert_eq!(
        (report.status, report.json()["number"].as_u64()),
        (200, Some(0))
    );
    assert_eq!(stage.actor.calls(), 1);
}

#[test]
fn a_source_that_panics_spoils_its_own_answer_only() {
    let stage = Stage::new(Conduct::Panicking);
    for target in ["/attestation", "/metrics", "/ready"] {
        let answer = get(stage.address(), target);
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (500, "internal error")
        );
        assert_eq!(get(stage.address(), "/health").status, 200);
    }
    let stats = stage.server.stats();
    assert_eq!(stats.requests(Endpoint::Metrics, Class::ServerError), 1);
    assert_eq!(stats.requests(Endpoint::Health, Class::Success), 3);
}
