//! A server that answers one question with recorded bytes, and keeps what it was asked.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use attest::agent::{Agent, AgentAddress};

use crate::{Folder, client, patient};

pub(crate) struct Replay {
    thread: JoinHandle<Vec<u8>>,
    folder: Folder,
}

/// What was asked: the head, and the body.
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Replay {
    /// Answers with `status` and exactly `body`.
    pub(crate) fn of(status: u16, body: &[u8]) -> Self {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("agent.sock")).unwrap();
        let head = format!(
            "HTTP/1.1 {status} Recorded\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = [head.as_bytes(), body].concat();
        let thread = std::thread::spawn(move || serve(&listener, &answer));
        Self { thread, folder }
    }

    pub(crate) fn client(&self) -> Agent {
        client(
            AgentAddress::Unix(self.folder.path("agent.sock")),
            patient(),
        )
    }

    /// What it was asked; to be called after the answer came.
    pub(crate) fn asked(self) -> Asked {
        let request = self.thread.join().unwrap();
        let end = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        Asked {
            head: String::from_utf8(request[..end].to_vec()).unwrap(),
            body: request[end + 4..].to_vec(),
        }
    }
}

fn serve(listener: &UnixListener, answer: &[u8]) -> Vec<u8> {
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let request = read(&mut stream);
    stream.write_all(answer).unwrap();
    request
}

/// Up to the end of the body.
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
        assert_ne!(read, 0, "the client hung up");
        request.extend_from_slice(&chunk[..read]);
    }
}
