//! A stream that lets tokio-postgres log in by the allowed authentication methods only.
//!
//! tokio-postgres answers whatever the server asks for, a password in cleartext and a proof by a
//! single SCRAM iteration included. The guard keeps back everything that the server sends until its
//! first Authentication message is complete, and fails the read if that asks for a method that is not
//! allowed. It does the same with the SCRAM challenge and its iteration count. After that it only
//! passes bytes on. tokio-postgres itself checks that a server that began SCRAM finishes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::backend::{AuthMethods, BackendError, FirstResponse, MAX_LOGIN_MESSAGE};

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
    Method(Vec<u8>),
    /// The method is SCRAM, and its challenge has not arrived. Holds what tokio-postgres has not read
    /// yet, and what may not be passed on yet.
    Challenge { checked: Vec<u8>, received: Vec<u8> },
    /// The login is allowed. Holds what tokio-postgres has not read yet.
    Passing(Vec<u8>),
}

impl<S> LoginGuard<S> {
    pub(super) fn new(stream: S, methods: AuthMethods) -> Self {
        Self {
            stream,
            methods,
            phase: Phase::Method(Vec::new()),
        }
    }
}

impl Phase {
    /// Goes to the next phase if what was received suffices. Returns whether it did, or there is something to pass
    /// on.
    fn advance(&mut self, methods: AuthMethods) -> Result<bool, BackendError> {
        *self = match self {
            Phase::Method(received) => match methods.check_first_response(received)? {
                None => return Ok(false),
                Some(FirstResponse::Scram { len }) => {
                    let rest = received.split_off(len.min(received.len()));
                    Phase::Challenge {
                        checked: std::mem::take(received),
                        received: rest,
                    }
                }
                Some(FirstResponse::Other) => Phase::Passing(std::mem::take(received)),
            },
            Phase::Challenge { checked, received } => {
                if !checked.is_empty() {
                    return Ok(true);
                }
                match methods.check_challenge(received)? {
                    None => return Ok(false),
                    Some(()) => Phase::Passing(std::mem::take(received)),
                }
            }
            Phase::Passing(_) => return Ok(true),
        };
        Ok(true)
    }

    /// The server has closed the connection: there is nothing left to check.
    fn end(&mut self) {
        if let Phase::Method(received) | Phase::Challenge { received, .. } = self {
            *self = Phase::Passing(std::mem::take(received));
        }
    }

    /// What was received and may not be passed on yet.
    fn unchecked(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Phase::Method(received) | Phase::Challenge { received, .. } => Some(received),
            Phase::Passing(_) => None,
        }
    }

    /// What may be passed on.
    fn checked(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Phase::Challenge { checked, .. } | Phase::Passing(checked) => Some(checked),
            Phase::Method(_) => None,
        }
    }
}

impl<S: AsyncRead + Unpin> LoginGuard<S> {
    /// Reads until something may be passed on, or everything.
    fn poll_checked(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(received) = self.phase.unchecked() else {
                return Poll::Ready(Ok(()));
            };
            let too_long = received.len() > 2 * MAX_LOGIN_MESSAGE;
            match self.phase.advance(self.methods) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) if too_long => {
                    return Poll::Ready(Err(io::Error::other(BackendError::TooManyNotices)));
                }
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
            let mut space = [0; READ_SIZE];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            match (buffer.filled(), self.phase.unchecked()) {
                ([], _) | (_, None) => self.phase.end(),
                (bytes, Some(received)) => received.extend_from_slice(bytes),
            }
        }
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
        if let Some(checked) = guard.phase.checked()
            && !checked.is_empty()
        {
            let len = checked.len().min(buffer.remaining());
            buffer.put_slice(checked.get(..len).unwrap_or_default());
            checked.drain(..len);
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
    const CHALLENGE: &[u8] = b"R\0\0\0\x1f\0\0\0\x0br=abc,s=c2FsdA==,i=4096";
    const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\x00";
    const NOTICE: &[u8] = b"N\0\0\0\x0dSNOTICE\0\0";

    fn guarded(methods: AuthMethods) -> (DuplexStream, LoginGuard<DuplexStream>) {
        let (server, client) = duplex(1_000_000);
        (server, LoginGuard::new(client, methods))
    }

    #[tokio::test]
    async fn an_allowed_login_passes_unchanged_at_every_split() {
        let sent = [NOTICE, SCRAM, NOTICE, CHALLENGE, b"more"].concat();
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

    /// A server that asks for few iterations gets no proof, however its bytes are split.
    #[tokio::test]
    async fn a_challenge_with_few_iterations_is_not_passed_on() {
        for (methods, iterations, allowed) in [
            (AuthMethods::Scram, "4096", true),
            (AuthMethods::Scram, "4095", false),
            (AuthMethods::ScramOrNone, "1", false),
            (AuthMethods::Any, "1", true),
            (AuthMethods::Any, "600001", false),
        ] {
            let challenge = format!("r=abc,s=c2FsdA==,i={iterations}");
            let length = u32::try_from(challenge.len() + 8).unwrap();
            let head = [&b"R"[..], &length.to_be_bytes(), &[0, 0, 0, 11]].concat();
            let sent = [SCRAM, NOTICE, &head, challenge.as_bytes()].concat();
            for split in 0..=sent.len() {
                let (mut server, mut client) = guarded(methods);
                let (one, two) = sent.split_at(split);
                server.write_all(one).await.unwrap();
                let read = tokio::spawn(async move {
                    let mut received = Vec::new();
                    let result = client.read_to_end(&mut received).await;
                    (result.is_ok(), received)
                });
                tokio::task::yield_now().await;
                server.write_all(two).await.unwrap();
                drop(server);
                let expected = if allowed { &sent } else { SCRAM };
                assert_eq!(read.await.unwrap(), (allowed, expected.to_vec()));
            }
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
