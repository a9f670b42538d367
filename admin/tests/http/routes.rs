//! Tests of the responses of each endpoint.

use std::io::Write;
use std::time::Duration;

use admin::{Route, Settings, StatusClass};
use serde_json::json;

use crate::client::{connect, get, request};
use crate::harness::{Harness, SourceBehavior};

#[test]
fn health_and_index_are_text() {
    let harness = Harness::new(SourceBehavior::Good);
    let health = get(harness.address(), "/health");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let index = get(harness.address(), "/");
    for path in ["/health", "/ready", "/attestation", "/metrics"] {
        assert!(index.body.contains(path), "{index:?}");
    }
    // It is no member of a cluster.
    for path in ["/primary", "/cluster"] {
        assert!(!index.body.contains(path), "{index:?}");
        assert_eq!(get(harness.address(), path).status, 404);
    }
    for response in [health, index] {
        assert_eq!(
            response.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("connection"), Some("close"));
    }
}

#[test]
fn ready_reports_the_latches() {
    let harness = Harness::new(SourceBehavior::Good);
    let ready = get(harness.address(), "/ready");
    let check = json!({ "name": "identity", "ready": false, "reason": "no certificate yet" });
    let expected = json!({ "ready": false, "mode": "simulator", "checks": [check] });
    assert_eq!((ready.status, ready.json()), (503, expected));
    assert_eq!(ready.header("cache-control"), Some("no-store"));

    harness.latch.set_ready();
    let ready = get(harness.address(), "/ready");
    let check = json!({ "name": "identity", "ready": true, "reason": null });
    let expected = json!({ "ready": true, "mode": "simulator", "checks": [check] });
    assert_eq!((ready.status, ready.json()), (200, expected));

    harness.latch.set_not_ready("the certificate expires");
    let ready = get(harness.address(), "/ready");
    assert_eq!(ready.status, 503);
    assert_eq!(
        ready.json()["checks"][0]["reason"],
        "the certificate expires"
    );
    assert_eq!(get(harness.address(), "/health").status, 200);
}

#[test]
fn metrics_come_from_the_source_on_the_admin_thread() {
    let harness = Harness::new(SourceBehavior::Good);
    let metrics = get(harness.address(), "/metrics");
    assert_eq!(metrics.status, 200);
    let format = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(metrics.header("content-type"), Some(format));
    assert_eq!(metrics.body, "connections 1\n# thread Some(\"admin\")\n");
}

#[test]
fn head_returns_the_headers_of_get() {
    let harness = Harness::new(SourceBehavior::Good);
    for target in ["/health", "/ready", "/metrics", "/attestation", "/"] {
        let head = format!("HEAD {target} HTTP/1.1\r\nHost: sidecar\r\n\r\n");
        let head = request(harness.address(), &head);
        let got = get(harness.address(), target);
        assert_eq!((head.status, head.body.as_str()), (got.status, ""));
        let length = head.header("content-length").unwrap();
        // The connection count in the body has risen in between, but not to two digits.
        assert_eq!(length, got.body.len().to_string());
    }
}

#[test]
fn unknown_paths_and_methods_are_rejected() {
    let harness = Harness::new(SourceBehavior::Good);
    for target in [
        "/x",
        "/health/",
        "/HEALTH",
        "//health",
        "/attestation/..",
        "/%68ealth",
    ] {
        let response = get(harness.address(), target);
        assert_eq!(response.status, 404, "{target}");
        assert!(!response.body.contains(target), "{response:?}");
    }
    for method in ["POST", "PUT", "DELETE", "TRACE", "PATCH", "BREW"] {
        let bytes = format!("{method} /attestation HTTP/1.1\r\nHost: sidecar\r\n\r\n");
        let response = request(harness.address(), &bytes);
        assert_eq!(response.status, 405, "{method}");
        assert_eq!(response.header("allow"), Some("GET, HEAD, OPTIONS"));
    }
    assert_eq!(harness.source.calls(), 0);
}

/// HAProxy's `option httpchk`, with and without a path.
#[test]
fn options_have_the_status_of_the_check() {
    let harness = Harness::new(SourceBehavior::Good);
    let status = |line: &str| {
        let response = request(harness.address(), &format!("{line}\r\n\r\n"));
        assert_eq!(response.body, "", "{line}");
        if response.status != 404 {
            assert_eq!(response.header("allow"), Some("GET, HEAD, OPTIONS"));
        }
        response.status
    };
    for target in ["/", "*", "/health", "/metrics", "/attestation"] {
        let line = format!("OPTIONS {target} HTTP/1.0");
        assert_eq!(status(&line), 200, "{target}");
    }
    harness.latch.set_ready();
    assert_eq!(status("OPTIONS /ready HTTP/1.0"), 200);
    harness.latch.set_not_ready("draining");
    assert_eq!(status("OPTIONS /ready HTTP/1.0"), 503);
    assert_eq!(harness.source.calls(), 0);
}

#[test]
fn nonces_are_parsed_strictly() {
    let harness = Harness::new(SourceBehavior::Good);
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
        let response = get(harness.address(), &format!("/attestation?{query}"));
        assert_eq!(response.status, 400, "{query}");
        assert!(!response.error().is_empty());
    }
    assert_eq!(harness.source.calls(), 0);
    let nonce = "5A".repeat(32);
    let response = get(harness.address(), &format!("/attestation?nonce={nonce}"));
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["nonces"][0], nonce.to_lowercase());
    assert_eq!(response.header("cache-control"), Some("no-store"));
}

#[test]
fn reports_without_nonce_are_shared_and_nonces_are_rate_limited() {
    let harness = Harness::new(SourceBehavior::Good);
    let (first, second) = (
        get(harness.address(), "/attestation"),
        get(harness.address(), "/attestation"),
    );
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.json(), second.json());
    let limited = get(harness.address(), "/attestation?nonce=ab");
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    assert!(!limited.error().is_empty());
    assert_eq!(harness.source.calls(), 1);

    let stats = harness.server.stats();
    assert_eq!((stats.reports_made(), stats.reports_shared()), (1, 1));
    assert_eq!((stats.reports_limited(), stats.reports_failed()), (1, 0));
    assert_eq!(stats.requests(Route::Attestation, StatusClass::Success), 2);
    assert_eq!(
        stats.requests(Route::Attestation, StatusClass::ClientError),
        1
    );
}

#[test]
fn a_failed_quote_returns_its_reason_and_starts_the_interval() {
    let harness = Harness::new(SourceBehavior::Failing);
    let failed = get(harness.address(), "/attestation");
    assert_eq!(
        (failed.status, failed.error().as_str()),
        (503, "the guest agent is unreachable")
    );
    assert_eq!(get(harness.address(), "/attestation").status, 429);
    assert_eq!(harness.source.calls(), 1);
    let stats = harness.server.stats();
    assert_eq!(
        stats.requests(Route::Attestation, StatusClass::ServerError),
        1
    );
    assert_eq!(stats.reports_failed(), 1);
}

#[test]
fn a_hanging_source_times_out_while_other_endpoints_respond() {
    let settings = Settings {
        attestation_timeout: Duration::from_millis(500),
        ..Harness::settings()
    };
    let harness = Harness::with(SourceBehavior::Hanging, settings);
    let address = harness.address();
    let waiter = std::thread::spawn(move || get(address, "/attestation"));
    harness.wait_for_quote();
    assert_eq!(get(address, "/health").status, 200);
    assert_eq!(get(address, "/attestation?nonce=ab").status, 429);
    let late = waiter.join().unwrap();
    assert_eq!(
        (late.status, late.error().as_str()),
        (504, "timed out waiting for a quote")
    );
    assert_eq!(harness.source.calls(), 1);
}

#[test]
fn a_client_disconnect_does_not_cancel_the_quote() {
    let harness = Harness::new(SourceBehavior::Good);
    let mut client = connect(harness.address());
    client
        .write_all(b"GET /attestation HTTP/1.0\r\n\r\n")
        .unwrap();
    harness.wait_for_quote();
    drop(client);
    let report = get(harness.address(), "/attestation");
    assert_eq!(
        (report.status, report.json()["number"].as_u64()),
        (200, Some(0))
    );
    assert_eq!(harness.source.calls(), 1);
}

#[test]
fn a_panicking_source_fails_only_its_own_response() {
    let harness = Harness::new(SourceBehavior::Panicking);
    for target in ["/", "/attestation", "/metrics", "/ready"] {
        let response = get(harness.address(), target);
        assert_eq!(
            (response.status, response.error().as_str()),
            (500, "internal error")
        );
        assert_eq!(get(harness.address(), "/health").status, 200);
    }
    let stats = harness.server.stats();
    assert_eq!(stats.requests(Route::Metrics, StatusClass::ServerError), 1);
    assert_eq!(stats.requests(Route::Health, StatusClass::Success), 4);
}
