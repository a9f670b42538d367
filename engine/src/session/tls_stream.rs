//! A TLS stream in the phases before the relay: the handshake, and single messages.
//!
//! It must never be split into halves: the relay does that.

use std::io;

use rustls::Side;

use crate::io::buffer::{Buffer, Size};
use crate::io::stream::Stream;
use crate::io::tcp_info::peer_has_closed;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::sched::yield_now::yield_now;
use crate::session::control::ConnectionControl;
use crate::telemetry::close_reason::CloseReason;
use crate::tls::session::{HandshakeSummary, Session, TlsError, TlsSide};

/// A socket, its TLS session, and the bytes that are buffered between them.
pub(crate) struct TlsStream<E> {
    pub(crate) stream: Stream,
    pub(crate) session: Session<E>,
    /// Ciphertext that has been read but not opened yet.
    pub(crate) incoming: Buffer,
    /// Plaintext that has been opened but not consumed yet.
    pub(crate) plain: Buffer,
}

/// Why an operation on a [`TlsStream`] failed.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// The peer closed the connection.
    Eof,
    Io(io::Error),
    Tls(TlsError),
}

impl StreamError {
    /// Converts an error of a client's stream after the handshake. A termination takes precedence.
    pub(crate) fn into_close_reason(self, control: &ConnectionControl) -> CloseReason {
        control.or_terminated(match self {
            StreamError::Eof => CloseReason::ClientGone,
            StreamError::Io(error) => CloseReason::ClientIo(error),
            StreamError::Tls(error) => CloseReason::TlsSession(error),
        })
    }
}

impl<E: TlsSide> TlsStream<E> {
    /// `incoming` may contain the first bytes of the peer's first record.
    pub(crate) fn new(stream: Stream, session: Session<E>, incoming: Buffer) -> Self {
        Self {
            stream,
            session,
            incoming,
            plain: Buffer::take(Size::Small),
        }
    }

    /// Performs the handshake. Each step waits in the shard's handshake queue.
    ///
    /// # Errors
    /// The peer closed the connection, or violated the protocol. It has then been sent an alert.
    pub(crate) async fn handshake(
        &mut self,
        handshake_queue: &HandshakeQueue,
        control: &ConnectionControl,
    ) -> Result<HandshakeSummary, StreamError> {
        // A client begins without input.
        let mut has_begun = E::SIDE == Side::Client;
        let mut needs_input = !has_begun;
        loop {
            // A step of a handshake begins with a whole record: silence takes no place in the queue.
            while needs_input && !has_whole_record(self.unread()) {
                self.read_socket().await?;
            }
            let work = control.begin_work();
            let permit = handshake_queue.acquire(has_begun).await;
            // A client that gave up while it waited in the backlog must not delay the others. Only before the first step:
            // later the client may have closed after it sent a CancelRequest, which is to be carried out.
            if !has_begun && peer_has_closed(self.stream.raw_fd()) {
                return Err(StreamError::Eof);
            }
            let opened = self.open_records();
            drop((permit, work));
            (has_begun, needs_input) = (true, true);
            self.send_pending(opened).await?;
            if let Some(summary) = self.session.finish() {
                // Records may have arrived together with the last handshake message.
                self.open().await?;
                return Ok(summary);
            }
            self.read_socket().await?;
        }
    }

    /// Reads until [`Self::plain`] has grown.
    ///
    /// # Errors
    /// As [`Self::handshake`]. A close_notify is [`StreamError::Eof`].
    pub(crate) async fn read_more(&mut self) -> Result<(), StreamError> {
        let before = self.plain.len();
        loop {
            if self.session.peer_closed() {
                return Err(StreamError::Eof);
            }
            self.read_socket().await?;
            self.open().await?;
            if self.plain.len() > before {
                return Ok(());
            }
        }
    }

    /// Seals and sends `plain`.
    ///
    /// # Errors
    /// The connection or the TLS session failed.
    pub(crate) async fn send(&mut self, plain: &[u8]) -> Result<(), StreamError> {
        let mut outgoing = Buffer::take(if plain.len() <= crate::io::buffer::SMALL {
            Size::Small
        } else {
            Size::Large
        });
        for chunk in plain.chunks(crate::io::buffer::LARGE) {
            self.session
                .seal(chunk, &mut outgoing)
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

    /// Sends close_notify. Nothing can be sent after that.
    pub(crate) async fn close(&mut self) {
        let mut outgoing = Buffer::take(Size::Small);
        if self.session.close(&mut outgoing).is_ok() {
            let _ = self.stream.write_all(outgoing.filled().to_vec()).await;
        }
    }

    /// What the handshake has not read yet of the bytes from the peer.
    fn unread(&self) -> &[u8] {
        let incoming = self.incoming.filled();
        incoming.get(self.session.presented()..).unwrap_or_default()
    }

    /// Reads from the socket once.
    async fn read_socket(&mut self) -> Result<(), StreamError> {
        let incoming = std::mem::replace(&mut self.incoming, Buffer::none());
        let incoming = incoming.make_room();
        if incoming.room() == 0 {
            // A handshake message is larger than a buffer. A read into an empty slice would
            // return 0, like the end of the stream.
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

    /// Opens the records that have been read, and sends the response that TLS requires.
    async fn open(&mut self) -> Result<(), StreamError> {
        loop {
            let opened = self.open_records();
            self.send_pending(opened).await?;
            if !self.session.is_interrupted() {
                return Ok(());
            }
            yield_now().await;
        }
    }

    fn open_records(&mut self) -> Result<(), TlsError> {
        if self.plain.room() < self.incoming.len() {
            let plain = std::mem::replace(&mut self.plain, Buffer::none());
            self.plain = plain.make_room().grown();
        }
        self.session.open(&mut self.incoming, &mut self.plain)
    }

    /// Sends the response of TLS to the records that were opened: an alert, if that failed.
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

/// Whether `bytes` begin with a record that TLS can act upon: one that is complete, or one that it refuses for its
/// header.
fn has_whole_record(bytes: &[u8]) -> bool {
    /// Maximum bytes of a record after its header, in any version of TLS (RFC 5246, 6.2.3).
    const MAX_RECORD: usize = (1 << 14) + 2048;
    let [kind, _, _, high, low, rest @ ..] = bytes else {
        return false;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // The types of records: 20 to 24 (RFC 8446, 5.1; RFC 6520).
    !(20..=24).contains(kind) || length > MAX_RECORD || rest.len() >= length
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Write as _;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use rustls::ServerConfig;
    use rustls::server::{ResolvesServerCertUsingSni, UnbufferedServerConnection};

    use super::*;
    use crate::io::driver::{IoDriver, block_on};
    use crate::io::stream::DetachedStream;
    use crate::session::activity::ShardActivity;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::shard_metrics::ShardMetrics;

    #[test]
    fn a_step_begins_with_a_whole_record() {
        for incomplete in [&b""[..], &[22, 3, 1, 0], &[22, 3, 1, 0, 2, 1]] {
            assert!(!has_whole_record(incomplete), "{incomplete:?}");
        }
        assert!(has_whole_record(&[22, 3, 1, 0, 2, 1, 1]));
        // TLS refuses these before they are complete.
        assert!(has_whole_record(&[71, 3, 1, 0, 2]));
        assert!(has_whole_record(&[22, 3, 1, 0xff, 0xff]));
    }

    /// The first step of a handshake with a client that speaks another protocol.
    fn first_step(client_has_closed: bool) -> StreamError {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        if client_has_closed {
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        let outcome = Rc::new(RefCell::new(None));
        let seen = Rc::clone(&outcome);
        block_on(IoDriver::Epoll, async move {
            let connection = UnbufferedServerConnection::new(Arc::new(config)).unwrap();
            let stream = DetachedStream::Tcp(server).on_this_thread().unwrap();
            let incoming = Buffer::take(Size::Small);
            let mut stream = TlsStream::new(stream, Session::new(connection), incoming);
            let limit = Duration::from_secs(5);
            let queue = HandshakeQueue::new(limit, Rc::default());
            let metrics = Rc::new(ShardMetrics::new(&Metrics::new().unwrap(), 0));
            let activity = Rc::new(ShardActivity::idle());
            let control = ConnectionControl::new(Instant::now() + limit, metrics, activity);
            *seen.borrow_mut() = stream.handshake(&queue, &control).await.err();
        })
        .unwrap();
        drop(client);
        outcome.take().unwrap()
    }

    #[test]
    fn a_client_that_has_closed_costs_no_step() {
        let closed = first_step(true);
        assert!(matches!(closed, StreamError::Eof), "{closed:?}");
        let open = first_step(false);
        assert!(matches!(open, StreamError::Tls(_)), "{open:?}");
    }
}
