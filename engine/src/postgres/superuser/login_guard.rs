//! A stream that lets tokio-postgres log in by the allowed authentication methods only.
//!
//! tokio-postgres answers whatever the server asks for, a password in cleartext included. The guard
//! keeps back everything that the server sends until its first Authentication message is complete,
//! and fails the read if that asks for a method that is not allowed. After that it only passes bytes
//! on. tokio-postgres itself checks that a server that began SCRAM finishes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::backend::{AuthMethods, BackendError, MAX_LOGIN_MESSAGE};

/// How much is read at a time before the method is known.
const READ_SIZE: usize = 1_024;

/// The guarded stream.
pub(super) struct LoginGuard<S> {
    stream: S,
    methods: AuthMethods,
    phase: Phase,
}

enum Phase {
    /// The method is unknown. Holds everything that the server sent.
    Checking(Vec<u8>),
    /// The method is allowed. Holds what tokio-postgres has not read yet.
    Passing(Vec<u8>),
}

impl<S> LoginGuard<S> {
    pub(super) fn new(stream: S, methods: AuthMethods) -> Self {
        Self {
            stream,
            methods,
            phase: Phase::Checking(Vec::new()),
        }
    }
}

impl<S: AsyncRead + Unpin> LoginGuard<S> {
    /// Reads until the method is known.
    fn poll_checked(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Phase::Checking(received) = &mut self.phase else {
            return Poll::Ready(Ok(()));
        };
        loop {
            match self.methods.check_first_response(received) {
                Ok(Some(())) => break,
                Ok(None) if received.len() > 2 * MAX_LOGIN_MESSAGE => {
                    return Poll::Ready(Err(io::Error::other(BackendError::TooManyNotices)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
            let mut space = [0; READ_SIZE];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                break;
            }
            received.extend_from_slice(buffer.filled());
        }
        self.phase = Phase::Passing(std::mem::take(received));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LoginGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        ready!(guard.poll_checked(context))?;
        if let Phase::Passing(rest) = &mut guard.phase
            && !rest.is_empty()
        {
            let len = rest.len().min(buffer.remaining());
            buffer.put_slice(rest.get(..len).unwrap_or_default());
            rest.drain(..len);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut guard.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LoginGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const SCRAM: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
    const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\x00";
    const NOTICE: &[u8] = b"N\0\0\0\x0dSNOTICE\0\0";

    fn guarded(methods: AuthMethods) -> (DuplexStream, LoginGuard<DuplexStream>) {
        let (server, client) = duplex(1_000_000);
        (server, LoginGuard::new(client, methods))
    }

    #[tokio::test]
    async fn an_allowed_login_passes_unchanged_at_every_split() {
        let sent = [NOTICE, SCRAM, b"more"].concat();
        for split in 0..=sent.len() {
            let (mut server, mut client) = guarded(AuthMethods::Scram);
            let (one, two) = sent.split_at(split);
            server.write_all(one).await.unwrap();
            let read = tokio::spawn(async move {
                let mut received = Vec::new();
                client.read_to_end(&mut received).await.map(|_| received)
            });
            tokio::task::yield_now().await;
            server.write_all(two).await.unwrap();
            drop(server);
            assert_eq!(read.await.unwrap().unwrap(), sent);
        }
    }

    #[tokio::test]
    async fn nothing_of_a_login_by_another_method_is_passed_on() {
        for (methods, request, allowed) in [
            (AuthMethods::Scram, CLEARTEXT, false),
            (AuthMethods::Scram, OK, false),
            (AuthMethods::ScramOrNone, OK, true),
            (AuthMethods::ScramOrNone, CLEARTEXT, false),
            (AuthMethods::Any, CLEARTEXT, true),
        ] {
            let (mut server, mut client) = guarded(methods);
            let sent = [NOTICE, request].concat();
            server.write_all(&sent).await.unwrap();
            drop(server);
            let mut received = Vec::new();
            let result = client.read_to_end(&mut received).await;
            assert_eq!(result.is_ok(), allowed);
            assert_eq!(received, if allowed { sent } else { Vec::new() });
        }
    }

    #[tokio::test]
    async fn an_error_response_and_the_end_are_passed_on() {
        for sent in [&b"E\0\0\0\x0fC57P03\0Mno\0\0"[..], b"", b"R\0"] {
            let (mut server, mut client) = guarded(AuthMethods::Scram);
            server.write_all(sent).await.unwrap();
            drop(server);
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, sent);
        }
    }

    #[tokio::test]
    async fn endless_notices_end_the_login() {
        let (mut server, mut client) = guarded(AuthMethods::Scram);
        server.write_all(&NOTICE.repeat(10_000)).await.unwrap();
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.to_string(), "too many notices from the server");
    }

    #[tokio::test]
    async fn writes_are_passed_on() {
        let (mut server, mut client) = guarded(AuthMethods::Scram);
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"hello");
    }
}
