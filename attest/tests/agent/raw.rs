//! An HTTP client that sends hand-written requests, including ones that no HTTP library would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use attest::agent::AgentAddress;

pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub(crate) const JSON: &str = "content-type: application/json\r\n";

/// Sends `POST /<name>` with `body` as JSON. Returns the status and body of the response.
pub(crate) fn post(endpoint: &AgentAddress, name: &str, body: &[u8]) -> (u16, Vec<u8>) {
    send(endpoint, &format!("POST /{name}"), JSON, body)
}

/// `request_line` is method and target. Each of `headers` ends with CRLF.
pub(crate) fn send(
    endpoint: &AgentAddress,
    request_line: &str,
    headers: &str,
    body: &[u8],
) -> (u16, Vec<u8>) {
    let headers = format!("{headers}content-length: {}\r\n", body.len());
    exchange(endpoint, request_line, &headers, body)
}

/// Sends `body` in chunks of 5 bytes.
pub(crate) fn send_chunked(
    endpoint: &AgentAddress,
    request_line: &str,
    body: &[u8],
) -> (u16, Vec<u8>) {
    let headers = format!("{JSON}transfer-encoding: chunked\r\n");
    let mut chunked = Vec::new();
    for chunk in body.chunks(5) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    exchange(endpoint, request_line, &headers, &chunked)
}

fn exchange(
    endpoint: &AgentAddress,
    request_line: &str,
    headers: &str,
    body: &[u8],
) -> (u16, Vec<u8>) {
    let mut stream = connect(endpoint);
    let head = format!("{request_line} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    let end = response.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&response[9..12])
        .unwrap()
        .parse()
        .unwrap();
    (status, response[end + 4..].to_vec())
}

pub(crate) fn connect(endpoint: &AgentAddress) -> Box<dyn Stream> {
    let timeout = Some(Duration::from_secs(10));
    match endpoint {
        AgentAddress::Unix(path) => {
            let stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(timeout).unwrap();
            Box::new(stream)
        }
        AgentAddress::Url(url) => {
            let stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
            stream.set_read_timeout(timeout).unwrap();
            Box::new(stream)
        }
    }
}
