//! The client that operators use.

use std::process::Command;

use crate::harness::{Conduct, Stage};

/// What `curl -sS <arguments> <base><path>` prints; `None` where there is no curl.
fn curl(stage: &Stage, arguments: &[&str], path: &str) -> Option<String> {
    let url = format!("http://{}{path}", stage.address());
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
            println!("skipped: curl cannot be run: {error}");
            None
        }
    }
}

const STATUS: [&str; 4] = ["-o", "/dev/null", "-w", "%{http_code}"];

#[test]
fn curl_gets_what_it_asks_for() {
    let stage = Stage::new(Conduct::Good);
    let Some(health) = curl(&stage, &[], "/health") else {
        return;
    };
    assert_eq!(health, "ok\n");
    assert_eq!(curl(&stage, &STATUS, "/ready").unwrap(), "503");
    stage.latch.ready();
    assert_eq!(curl(&stage, &STATUS, "/ready").unwrap(), "200");
    let head = curl(&stage, &["-I"], "/metrics").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let report = curl(&stage, &[], "/attestation?nonce=00ff").unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report, serde_json::json!({"nonce": "00ff", "number": 0}));
    assert_eq!(curl(&stage, &STATUS, "/nothing").unwrap(), "404");
}

#[test]
fn curl_reads_why_its_body_is_refused() {
    let stage = Stage::new(Conduct::Good);
    let body = "x".repeat(100_000);
    let Some(answer) = curl(&stage, &["-X", "GET", "-d", &body], "/attestation") else {
        return;
    };
    assert_eq!(answer, r#"{"error":"no endpoint takes a body"}"#);
    let post = [&STATUS[..], &["-d", &body]].concat();
    assert_eq!(curl(&stage, &post, "/attestation").unwrap(), "405");
    // curl offers to upgrade, and is answered in HTTP/1.1.
    let upgrade = [&STATUS[..], &["--http2"]].concat();
    assert_eq!(curl(&stage, &upgrade, "/health").unwrap(), "200");
    assert_eq!(stage.actor.calls(), 0);
}
