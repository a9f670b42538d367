//! Tests with curl as the client.

use std::process::Command;

use crate::harness::{Harness, SourceBehavior};

/// The output of `curl -sS <arguments> <base><path>`; `None` where curl is not installed.
fn curl(harness: &Harness, arguments: &[&str], path: &str) -> Option<String> {
    let url = format!("http://{}{path}", harness.address());
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", "*"])
        .args(arguments)
        .arg(url)
        .output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            println!("skipped: cannot run curl: {error}");
            None
        }
    }
}

const STATUS: [&str; 4] = ["-o", "/dev/null", "-w", "%{http_code}"];

#[test]
fn curl_reads_every_endpoint() {
    let harness = Harness::new(SourceBehavior::Good);
    let Some(health) = curl(&harness, &[], "/health") else {
        return;
    };
    assert_eq!(health, "ok\n");
    assert_eq!(curl(&harness, &STATUS, "/ready").unwrap(), "503");
    harness.latch.set_ready();
    assert_eq!(curl(&harness, &STATUS, "/ready").unwrap(), "200");
    let head = curl(&harness, &["-I"], "/metrics").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let report = curl(&harness, &[], "/attestation?nonce=00ff").unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report, serde_json::json!({"nonces": ["00ff"], "number": 0}));
    assert_eq!(curl(&harness, &STATUS, "/nothing").unwrap(), "404");
}

#[test]
fn curl_receives_the_error_for_a_rejected_body() {
    let harness = Harness::new(SourceBehavior::Good);
    let body = "x".repeat(100_000);
    let Some(response) = curl(&harness, &["-X", "GET", "-d", &body], "/attestation") else {
        return;
    };
    assert_eq!(response, r#"{"error":"request bodies are not accepted"}"#);
    let post = [&STATUS[..], &["-d", &body]].concat();
    assert_eq!(curl(&harness, &post, "/attestation").unwrap(), "405");
    // curl offers an upgrade to HTTP/2, and the server responds in HTTP/1.1.
    let upgrade = [&STATUS[..], &["--http2"]].concat();
    assert_eq!(curl(&harness, &upgrade, "/health").unwrap(), "200");
    assert_eq!(harness.source.calls(), 0);
}
