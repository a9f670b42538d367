//! A raw HTTP client that sends arbitrary bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Maximum time for any wait in these tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A parsed response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{text:?}"));
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| head.strip_prefix("HTTP/1.0 "));
        Self {
            status: status
                .and_then(|rest| rest.get(..3))
                .unwrap_or_else(|| panic!("{text:?}"))
                .parse()
                .unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Reads until the server closes. A reset counts as a close: only the bytes before it matter.
pub(crate) fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 64 << 10]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return all,
            Ok(read) => all.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("{error} after {} bytes", all.len()),
        }
    }
}

/// Sends `bytes` in one piece and reads until the server closes.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // The write may fail although the server has already responded and closed.
    let _ = stream.write_all(bytes);
    String::from_utf8(read_to_end(&stream)).unwrap()
}

pub(crate) fn request(address: SocketAddr, bytes: &str) -> Response {
    Response::parse(&exchange(address, bytes.as_bytes()))
}

pub(crate) fn get(address: SocketAddr, target: &str) -> Response {
    request(
        address,
        &format!("GET {target} HTTP/1.1\r\nHost: sidecar\r\n\r\n"),
    )
}
