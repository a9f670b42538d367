//! Connections to the control socket of users who are not operators. The mode of its file keeps them out, but it can be changed.
//!
//! They are told why they are refused. They must never take a permit of the operators' requests, and never fill the log.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{REQUEST_TIMEOUT, read_request, send_error};
use crate::telemetry::line_limit::LineLimit;

/// Refusals that wait for a request, to answer it. Further connections are closed without an answer.
const MAX_ANSWERS: usize = 4;

/// The refusals of one socket.
pub(super) struct Refusals {
    permits: Arc<Semaphore>,
    lines: LineLimit,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_ANSWERS)),
            lines: LineLimit::default(),
        }
    }

    /// Refuses a user. It does not wait: another task sends the answer.
    pub(super) fn refuse(&mut self, stream: UnixStream, uid: u32) {
        if let Some(suppressed) = self.lines.take(Instant::now()) {
            let suppressed = Some(suppressed).filter(|lines| *lines > 0);
            tracing::warn!(
                uid,
                suppressed,
                "refused a user on the control socket: only root and the sidecar's own user may use it"
            );
        }
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            tokio::spawn(async move {
                // An error means that the client has disconnected.
                let _ = answer(stream).await;
                drop(permit);
            });
        }
    }
}

/// Only after the request was read: closing a socket with unread bytes resets it, and the client loses the answer.
async fn answer(stream: UnixStream) -> io::Result<()> {
    let (mut reader, writer) = stream.into_split();
    let _ = timeout(REQUEST_TIMEOUT, read_request(&mut reader)).await;
    send_error(writer, "only root and the sidecar's own user may ask").await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn read(mut client: UnixStream) -> String {
        let mut answer = String::new();
        let read = timeout(2 * REQUEST_TIMEOUT, client.read_to_string(&mut answer));
        read.await.expect("the end of the answer").unwrap();
        answer
    }

    #[tokio::test]
    async fn a_refused_user_is_told_so_after_its_request() {
        let mut refusals = Refusals::new();
        let (mut client, server) = UnixStream::pair().unwrap();
        refusals.refuse(server, 1);
        client
            .write_all(b"{\"command\":\"sessions\"}\n")
            .await
            .unwrap();
        let answer = read(client).await;
        assert!(answer.contains("only root"), "{answer}");
    }

    #[tokio::test]
    async fn silent_users_do_not_add_up() {
        let mut refusals = Refusals::new();
        let mut silent = Vec::new();
        for _ in 0..MAX_ANSWERS {
            let (client, server) = UnixStream::pair().unwrap();
            refusals.refuse(server, 1);
            silent.push(client);
        }
        let (client, server) = UnixStream::pair().unwrap();
        refusals.refuse(server, 1);
        assert_eq!(read(client).await, "");
        for client in silent {
            let answer = read(client).await;
            assert!(answer.contains("only root"), "{answer}");
        }
        // One line for all of them.
        assert_eq!(refusals.lines.take(Instant::now()), None);
        // The tasks give their permits back.
        let permits = u32::try_from(MAX_ANSWERS).unwrap();
        let all = refusals.permits.acquire_many(permits);
        let returned = timeout(REQUEST_TIMEOUT, all).await;
        assert!(matches!(returned, Ok(Ok(_))));
    }
}
