//! Requests to a running `dev --members`: one JSON array of texts in, one JSON object out, over a Unix socket that only
//! the same user can open.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::super::error::{DevError, system};
use crate::io::listener::private_unix_socket;

/// Longest request in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// Requests that wait to be accepted.
const BACKLOG: i32 = 16;

/// A request, and where the answer goes.
pub(super) struct Request {
    pub(super) words: Vec<String>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The output and the exit code of a request.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) code: u8,
    pub(super) output: String,
}

/// Accepts requests on the socket, for as long as the runtime runs.
pub(super) fn listen(path: &Path) -> Result<mpsc::Receiver<Request>, DevError> {
    let listen = || {
        let socket = private_unix_socket(path)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket.into())
    };
    let listener = listen().map_err(system("cannot listen for requests"))?;
    let (sender, requests) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, sender.clone()));
        }
    });
    Ok(requests)
}

async fn serve(stream: UnixStream, requests: mpsc::Sender<Request>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::AsyncReadExt::take(BufReader::new(reader), MAX_REQUEST);
    reader.read_line(&mut line).await?;
    let words: Vec<String> = match serde_json::from_str::<Value>(&line) {
        Ok(Value::Array(words)) => words
            .into_iter()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect(),
        _ => return Ok(()),
    };
    let (answer, answered) = oneshot::channel();
    let _ = requests.send(Request { words, answer }).await;
    let answer = answered.await.unwrap_or_else(|_| Answer {
        code: 1,
        output: "error: the cluster has ended\n".to_owned(),
    });
    let text = json!({"code": answer.code, "output": answer.output}).to_string();
    writer.write_all(text.as_bytes()).await
}

/// Sends a request, prints its output, and returns its exit code.
///
/// # Errors
/// The cluster does not run, or does not answer.
pub(in super::super) fn request(
    socket: &Path,
    words: &[OsString],
) -> Result<(u8, String), DevError> {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let send = || -> io::Result<String> {
        let mut stream = BlockingStream::connect(socket)?;
        stream.write_all(format!("{}\n", json!(words)).as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = send().map_err(system(format!(
        "cannot ask the cluster at {}",
        socket.display()
    )))?;
    let answer: Value = serde_json::from_str(&text)
        .map_err(|_| DevError::Members("the cluster has ended".to_owned()))?;
    let code = answer.get("code").and_then(Value::as_u64).unwrap_or(1);
    let output = answer
        .get("output")
        .and_then(Value::as_str)
        .unwrap_or_default();
    Ok((u8::try_from(code).unwrap_or(u8::MAX), output.to_owned()))
}
