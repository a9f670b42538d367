//! Requests written by hand, as bytes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use attest::agent::AgentAddress;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

const JSON: &str = "content-type: application/json\r\n";

/// Sends `POST /<name>` with JSON in `body`; gives status and body of the answer.
pub(crate) fn post(endpoint: &AgentAddress, name: &str, body: &[u8]) -> (u16, Vec<u8>) {
    send(endpoint, &format!("POST /{name}"), JSON, body)
}

/// `line` is method and target; `headers` end with a line end each.
pub(crate) fn send(
    endpoint: &AgentAddress,
    line: &str,
    headers: &str,
    body: &[u8],
) -> (u16, Vec<u8>) {
    let mut stream = connect(endpoint);
    let length = body.len();
    let head =
        format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12])
        .unwrap()
        .parse()
        .unwrap();
    (status, answer[end + 4..].to_vec())
}

fn connect(endpoint: &AgentAddress) -> Box<dyn Stream> {
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
