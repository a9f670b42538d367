//! Tests of the status page: who gets it, its headers, and that it can be closed.

use std::sync::atomic::Ordering;

use admin::{Route, Settings, StatusClass};

use crate::client::{Response, get, request};
use crate::harness::{Harness, SourceBehavior};

/// What Chromium and Firefox send.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn page(harness: &Harness, method: &str, accept: &str) -> Response {
    let head = format!("{method} / HTTP/1.1\r\nHost: sidecar\r\nAccept: {accept}\r\n\r\n");
    request(harness.address(), &head)
}

#[test]
fn browsers_get_html_and_others_the_list_of_paths() {
    let harness = Harness::new(SourceBehavior::Good);
    for accept in [
        BROWSER,
        "text/html",
        "Text/HTML;q=0.9",
        "*/*, text/html",
        "text/html; q=0.001",
    ] {
        let page = page(&harness, "GET", accept);
        assert_eq!(page.status, 200, "{accept}");
        assert_eq!(
            page.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(page.header("vary"), Some("accept"));
        assert!(page.body.starts_with("<!DOCTYPE html>"), "{}", page.body);
        assert!(page.body.contains("no certificate yet"), "{}", page.body);
    }
    for accept in [
        "*/*",
        "text/plain",
        "text/*",
        "application/json",
        "text/html2",
        "text/html;q=0",
        "text/html; charset=utf-8; Q=0.000, */*",
    ] {
        let list = page(&harness, "GET", accept);
        assert_eq!(
            list.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(list.header("vary"), Some("accept"));
        assert!(list.body.contains("/attestation"), "{}", list.body);
    }
    let list = get(harness.address(), "/");
    assert!(list.body.contains("/attestation"), "{}", list.body);
}

#[test]
fn the_page_may_load_and_run_nothing_else() {
    let harness = Harness::new(SourceBehavior::Good);
    let page = page(&harness, "GET", BROWSER);
    let policy = page.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(page.header(name), Some(value));
    }
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        // The name of the namespace of SVG is no address that is loaded.
        let body = page.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains(outside), "{outside}");
    }
}

#[test]
fn the_page_is_made_once_a_second_at_most() {
    let harness = Harness::new(SourceBehavior::Good);
    let bodies: Vec<_> = (0..20)
        .map(|_| page(&harness, "GET", BROWSER).body)
        .collect();
    let made = harness.source.statuses.load(Ordering::Relaxed);
    // On a machine that needs seconds for 20 requests.
    assert!(made < 20, "{made}");
    assert_eq!(bodies[0], bodies[1]);
    let head = page(&harness, "HEAD", BROWSER);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn a_setting_closes_it() {
    let settings = Settings {
        status_page: false,
        ..Harness::settings()
    };
    let harness = Harness::with(SourceBehavior::Good, settings);
    let closed = page(&harness, "GET", BROWSER);
    assert_eq!(closed.status, 404);
    assert!(closed.error().contains("status_page"), "{closed:?}");
    assert_eq!(harness.source.statuses.load(Ordering::Relaxed), 0);
    let list = page(&harness, "GET", "*/*");
    assert_eq!(list.status, 200);
    assert!(!list.body.contains("a page about"), "{}", list.body);
}

#[test]
fn a_panicking_source_fails_only_its_own_response() {
    let harness = Harness::new(SourceBehavior::Panicking);
    for _ in 0..2 {
        assert_eq!(page(&harness, "GET", BROWSER).status, 500);
    }
    assert_eq!(get(harness.address(), "/health").status, 200);
    let stats = harness.server.stats();
    assert_eq!(stats.requests(Route::Index, StatusClass::ServerError), 2);
}
