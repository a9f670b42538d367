//! A TLS stream before the relay: the handshake, and whole messages one after
//! the other.

use std::io;

use crate::io::buffer::{Buffer, Size};
use crate::io::stream::Stream;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::session::control::ConnectionControl;
use crate::telemetry::close_reason::CloseReason;
use crate::tls::session::{HandshakeSummary, Session, TlsError, TlsSide};

/// A socket with its session and the bytes between them.
pub(crate) struct TlsStream<E> {
    pub(crate) stream: Stream,
    pub(crate) session: Session<E>,
    /// Ciphertext that has been read and not opened.
    pub(crate) incoming: Buffer,
    /// Plaintext that has been opened and not used.
    pub(crate) plain: Buffer,
}

/// What can go wrong on it.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// The peer's stream ended.
    Eof,
    Io(io::Error),
    Tls(TlsError),
}

impl StreamError {
    /// What it means on a client's stream after the handshake: the watchdog's
    /// order where there is one.
    pub(crate) fn into_close_reason(self, control: &ConnectionControl) -> CloseReason {
        control.or_terminated(match self {
            StreamError::Eof => CloseReason::ClientGone,
            StreamError::Io(error) => CloseReason::ClientIo(error),
            StreamError::Tls(error) => CloseReason::TlsSession(error),
        })
    }
}

impl<E: TlsSide> TlsStream<E> {
    /// `incoming` may hold the first bytes of the peer's first record.
    pub(crate) fn new(stream: Stream, session: Session<E>, incoming: Buffer) -> Self {
        Self {
            stream,
            session,
            incoming,
            plain: Buffer::take(Size::Small),
        }
    }

    /// Runs the handshake to its end, each step in the shard's handshake_queue.
    ///
    /// # Errors
    /// The peer hung up, or broke the protocol; it has been sent the alert.
    pub(crate) async fn handshake(
        &mut self,
        handshake_queue: &HandshakeQueue,
    ) -> Result<HandshakeSummary, StreamError> {
        loop {
            let turn = handshake_queue.turn().await;
            let opened = self.open_records();
            drop(turn);
            self.send_pending(opened).await?;
            if let Some(agreed) = self.session.finish() {
                // What came with the last of it.
                self.open().await?;
                return Ok(agreed);
            }
            self.fill().await?;
        }
    }

    /// Reads until [`Self::plain`] has grown.
    ///
    /// # Errors
    /// As [`Self::handshake`]. The peer's close_notify counts as the end.
    pub(crate) async fn read_more(&mut self) -> Result<(), StreamError> {
        let before = self.plain.len();
        loop {
            if self.session.peer_closed() {
                return Err(StreamError::Eof);
            }
            self.fill().await?;
            self.open().await?;
            if self.plain.len() > before {
                return Ok(());
            }
        }
    }

    /// Seals and sends a few messages.
    ///
    /// # Errors
    /// The socket or the session is broken.
    pub(crate) async fn send(&mut self, plain: &[u8]) -> Result<(), StreamError> {
        let mut outgoing = Buffer::take(if plain.len() <= crate::io::buffer::SMALL {
            Size::Small
        } else {
            Size::Large
        });
        for piece in plain.chunks(crate::io::buffer::LARGE) {
            self.session
                .seal(piece, &mut outgoing)
                .map_err(StreamError::Tls)?;
            let sealed = outgoing.filled().to_vec();
            outgoing.consume(usize::MAX);
            self.stream
                .write_all(sealed)
                .await
                .map_err(StreamError::Io)?;
        }
        Ok(())
    }

    /// Says close_notify and ends our direction.
    pub(crate) async fn close(&mut self) {
        let mut outgoing = Buffer::take(Size::Small);
        if self.session.close(&mut outgoing).is_ok() {
            let _ = self.stream.write_all(outgoing.filled().to_vec()).await;
        }
    }

    /// One read from the socket.
    async fn fill(&mut self) -> Result<(), StreamError> {
        let incoming = std::mem::replace(&mut self.incoming, Buffer::none());
        let incoming = incoming.make_room();
        if incoming.room() == 0 {
            // A handshake message beyond a buffer: reading into nothing would
            // look like the end of the stream.
            return Err(StreamError::Tls(TlsError::NoRoom));
        }
        let (result, filled) = self.stream.read(incoming).await;
        self.incoming = filled;
        match result {
            Ok(0) => Err(StreamError::Eof),
            Ok(_) => Ok(()),
            Err(error) => Err(StreamError::Io(error)),
        }
    }

    /// Opens what has been read, and sends what that calls for.
    async fn open(&mut self) -> Result<(), StreamError> {
        let opened = self.open_records();
        self.send_pending(opened).await
    }

    fn open_records(&mut self) -> Result<(), TlsError> {
        if self.plain.room() < self.incoming.len() {
            let plain = std::mem::replace(&mut self.plain, Buffer::none());
            self.plain = plain.make_room().grown();
        }
        self.session.open(&mut self.incoming, &mut self.plain)
    }

    /// What has to be said to what was opened; an alert, if it was no good.
    async fn send_pending(&mut self, opened: Result<(), TlsError>) -> Result<(), StreamError> {
        let pending = self.session.take_pending();
        if !pending.is_empty() {
            let sent = self.stream.write_all(pending).await;
            opened.map_err(StreamError::Tls)?;
            return sent.map_err(StreamError::Io);
        }
        opened.map_err(StreamError::Tls)
    }
}
