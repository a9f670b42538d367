//! A server that responds to one request with recorded bytes, and records the request.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use attest::agent::{Agent, AgentAddress};

use crate::{Folder, client, single_attempt};

pub(crate) struct ReplayServer {
    thread: JoinHandle<Vec<u8>>,
    folder: Folder,
}

/// A received request.
pub(crate) struct RecordedRequest {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl ReplayServer {
    /// Responds with `status` and exactly `body`.
    pub(crate) fn start(status: u16, body: &[u8]) -> Self {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("agent.sock")).unwrap();
        let head = format!(
            "HTTP/1.1 {status} Recorded\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let response = [head.as_bytes(), body].concat();
        let thread = std::thread::spawn(move || serve(&listener, &response));
        Self { thread, folder }
    }

    pub(crate) fn client(&self) -> Agent {
        client(
            AgentAddress::Unix(self.folder.path("agent.sock")),
            single_attempt(),
        )
    }

    /// The received request. To be called once the client has its response.
    pub(crate) fn request(self) -> RecordedRequest {
        let request = self.thread.join().unwrap();
        let end = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        RecordedRequest {
            head: String::from_utf8(request[..end].to_vec()).unwrap(),
            body: request[end + 4..].to_vec(),
        }
    }
}

fn serve(listener: &UnixListener, response: &[u8]) -> Vec<u8> {
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let request = read(&mut stream);
    stream.write_all(response).unwrap();
    request
}

/// Reads a request to the end of its body.
fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).unwrap();
            let length = length.lines().next().unwrap().parse::<usize>().unwrap();
            if body.len() >= length {
                return request;
            }
        }
        let read = stream.read(&mut chunk).unwrap();
        assert_ne!(read, 0, "the client closed the connection");
        request.extend_from_slice(&chunk[..read]);
    }
}
