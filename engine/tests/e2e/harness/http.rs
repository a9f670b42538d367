//! A minimal HTTP client that sends one GET per connection, and checks of `/ready`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::harness::client::set_timeouts;
use crate::harness::process::{TIMEOUT, poll_until};

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The value of a header, by its name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// Sends a GET request and reads to the end of the connection.
pub(crate) fn get(address: SocketAddr, target: &str) -> Response {
    get_with(address, target, "")
}

/// The same with further header lines.
pub(crate) fn get_with(address: SocketAddr, target: &str, headers: &str) -> Response {
    let mut stream = TcpStream::connect(address).expect("the admin port accepts");
    set_timeouts(&stream);
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    stream
        .write_all(request.as_bytes())
        .expect("the server reads");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a complete response");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Response {
        status: status.unwrap_or_else(|| panic!("no status: {head}")),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Name and reason of each check in `/ready` that is not ready.
pub(crate) fn unready(address: SocketAddr) -> Vec<(String, String)> {
    let response = get(address, "/ready");
    let json = response.json();
    let checks = json["checks"].as_array().expect("checks");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reasons: Vec<_> = checks
        .iter()
        .filter(|check| check["ready"] != true)
        .map(|check| (text(&check["name"]), text(&check["reason"])))
        .collect();
    let status = if reasons.is_empty() { 200 } else { 503 };
    assert_eq!(response.status, status, "{json}");
    assert_eq!(json["ready"], reasons.is_empty(), "{json}");
    let optional = ["audit", "cluster", "manifest"];
    let always = checks
        .iter()
        .filter(|check| !optional.contains(&check["name"].as_str().unwrap_or_default()));
    assert_eq!(always.count(), 7, "{json}");
    reasons
}

/// Waits until all checks in `/ready` are ready.
pub(crate) fn await_ready(address: SocketAddr) {
    let mut last = Vec::new();
    poll_until(TIMEOUT, || {
        last = unready(address);
        last.is_empty().then_some(())
    })
    .unwrap_or_else(|| panic!("never became ready: {last:?}"));
}

/// Waits until `check` in `/ready` is not ready for a reason that contains `text`.
pub(crate) fn await_unready(address: SocketAddr, check: &str, text: &str) -> String {
    let mut last = Vec::new();
    poll_until(TIMEOUT, || {
        last = unready(address);
        let found = last.iter().find(|(name, _)| name == check)?;
        found.1.contains(text).then(|| found.1.clone())
    })
    .unwrap_or_else(|| panic!("{check} never became unready with the reason {text:?}: {last:?}"))
}
