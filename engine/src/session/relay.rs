//! The bidirectional relay of a session after the login. It does not interpret the bytes.
//!
//! Two half-relays run in one task. Each does one read, and then writes the bytes that it has read
//! before it reads again. That bounds the memory and passes back-pressure on in both directions.
//! While a write is in progress, more bytes arrive, so that the reads of a busy stream become
//! larger. No read or write may be dropped before it has completed.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::try_join;

use crate::io::buffer::{Buffer, Size};
use crate::io::stream::{Stream, WriteHalf};
use crate::sched::yield_now::yield_now;
use crate::session::control::ConnectionControl;
use crate::session::reader::Reader;
use crate::session::tls_stream::TlsStream;
use crate::telemetry::close_reason::CloseReason;
use crate::tls::session::{Session, TlsSide};

/// The side of the relay that the database client is on. That side receives an error message when
/// its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientSide {
    /// In a sidecar.
    Tls,
    /// In a forwarder.
    Plain,
}

/// Relays bytes until both directions have ended or one has failed. `received` is plaintext that
/// arrived from the plain side together with the last message of the login.
///
/// This is not an `async fn`, and the half-relays have no methods that take `self` or a buffer: such a
/// future keeps space for its arguments in addition to what they are moved into, for as long as the
/// session lasts.
pub(crate) fn relay<E: TlsSide>(
    tls: TlsStream<E>,
    plain: Stream,
    received: Buffer,
    client_side: ClientSide,
    control: &ConnectionControl,
) -> impl Future<Output = CloseReason> {
    let session = Rc::new(RefCell::new(tls.session));
    let (tls_read, tls_write) = tls.stream.into_split();
    let (plain_read, plain_write) = plain.into_split();
    let closed = Rc::new(Cell::new(None));
    let mut opening = Opening {
        session: Rc::clone(&session),
        control,
        closed: Rc::clone(&closed),
        client_side,
        read: Reader::new(tls_read),
        write: plain_write,
        incoming: tls.incoming,
        plain: tls.plain,
    };
    let mut sealing = Sealing {
        session,
        control,
        closed: Rc::clone(&closed),
        client_side,
        read: match client_side {
            // Postgres sends small pieces. A forwarder's client writes as much at once as it can, and what a link
            // carries is unknown.
            ClientSide::Tls if !control.is_link() => Reader::coalescing(plain_read, control),
            ClientSide::Tls | ClientSide::Plain => Reader::new(plain_read),
        },
        write: tls_write,
        plain: received,
    };
    let opening = async move { opening.run().await };
    let sealing = async move { sealing.run().await };
    try_join(opening, sealing).map(move |outcome| {
        control.or_terminated(match (closed.get(), outcome) {
            (Some(Side::Plain), _) => CloseReason::UpstreamClosed,
            (Some(Side::Tls), _) | (None, Ok(_)) => CloseReason::ClientClosed,
            (None, Err(reason)) => reason,
        })
    })
}

/// The service behind the plain side of a link that has failed must not take what it has received for complete.
fn reset_plain_of_link(control: &ConnectionControl, client_side: ClientSide) {
    if control.is_link() {
        control.reset_plain(client_side == ClientSide::Plain);
    }
}

/// The side that closed its connection, and thereby ended the session.
#[derive(Clone, Copy)]
enum Side {
    Tls,
    Plain,
}

/// Records which side closed first. The other side closes only as a consequence.
fn record_close(closed: &Cell<Option<Side>>, side: Side) {
    closed.set(closed.get().or(Some(side)));
}

/// The half-relay that opens TLS records: TLS in, plaintext out.
struct Opening<'a, E> {
    session: Rc<RefCell<Session<E>>>,
    control: &'a ConnectionControl,
    closed: Rc<Cell<Option<Side>>>,
    client_side: ClientSide,
    read: Reader<'a>,
    write: WriteHalf,
    /// Ciphertext that has been read but not opened yet.
    incoming: Buffer,
    /// Plaintext that has not been written yet.
    plain: Buffer,
}

impl<E: TlsSide> Opening<'_, E> {
    async fn run(&mut self) -> Result<(), CloseReason> {
        let mut result = self.relay_until_close().await;
        if self.control.is_link() {
            if result.is_err() {
                // Before the write half is dropped, which would send FIN.
                reset_plain_of_link(self.control, self.client_side);
                return result;
            }
            record_close(&self.closed, Side::Tls);
            let _ = self.write.shutdown().await;
            self.control.half_closed();
            return Ok(());
        }
        if self.client_side == ClientSide::Plain {
            if result.is_ok() && self.closed.get().is_none() && self.control.bytes().1 == 0 {
                // The server closed before it sent a byte, although the client waits for one.
                result = Err(CloseReason::ClientIo(io::ErrorKind::UnexpectedEof.into()));
            }
            // Boxed: no session should hold space for the way in which it may end.
            Box::pin(self.send_error(result.as_ref().err())).await;
        }
        result?;
        record_close(&self.closed, Side::Tls);
        // An error here means that the plain side closed at the same time.
        let _ = self.write.shutdown().await;
        if self.client_side == ClientSide::Plain {
            // An idle client may not read the end of the stream for hours. Do not wait for it.
            self.control.start_closing();
        }
        Ok(())
    }

    /// Sends the client of a forwarder an ErrorResponse with the reason for the end of its
    /// session: a termination, or an error before the server has sent a byte.
    async fn send_error(&mut self, error: Option<&CloseReason>) {
        let termination = self.control.terminate_reason().map(CloseReason::from);
        let error = error.filter(|_| self.control.bytes().1 == 0);
        if let Some(response) = termination
            .as_ref()
            .or(error)
            .and_then(CloseReason::driver_response)
        {
            let mut outgoing = Buffer::take(Size::Small);
            if outgoing.extend(&response) {
                let _ = self.write.write_all(outgoing).await;
            }
        }
    }

    /// Relays until the TLS side closes or either side fails.
    async fn relay_until_close(&mut self) -> Result<(), CloseReason> {
        loop {
            if !self.plain.is_empty() {
                match self.client_side {
                    ClientSide::Tls => self.control.count_received(self.plain.len()),
                    ClientSide::Plain => self.control.count_sent(self.plain.len()),
                }
                let plain = std::mem::replace(&mut self.plain, Buffer::none());
                let (result, _) = self.write.write_all(plain).await;
                if let Err(error) = result {
                    return Box::pin(self.discard(error)).await;
                }
            }
            if self.session.borrow().peer_closed() {
                break;
            }
            if self.session.borrow().is_interrupted() {
                yield_now().await;
            } else {
                let incoming = std::mem::replace(&mut self.incoming, Buffer::none());
                let (result, filled) = self.read.read(incoming.make_room()).await;
                self.incoming = filled;
                match result {
                    // What a link carries may have no lengths, such as a response of HTTP/1.0: the end of the
                    // stream is its end only with a close_notify.
                    Ok(0) if self.control.is_link() => {
                        return Err(CloseReason::ClientIo(io::ErrorKind::UnexpectedEof.into()));
                    }
                    // Many clients close without close_notify. That is safe, because messages of
                    // the PostgreSQL protocol carry their length: truncation is detected.
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => return Err(CloseReason::ClientIo(error)),
                }
            }
            self.plain = Buffer::take(self.incoming.size());
            self.session
                .borrow_mut()
                .open(&mut self.incoming, &mut self.plain)
                .map_err(CloseReason::TlsSession)?;
        }
        Ok(())
    }

    /// Reads and discards the bytes of the TLS side after a write to the plain side has failed.
    /// The plain side has closed, and the other half-relay may still be sending its last message.
    /// Closing a socket with unread bytes would reset the connection, and that message would be
    /// lost.
    async fn discard(&mut self, error: io::Error) -> Result<(), CloseReason> {
        let mut bytes = 0;
        loop {
            let mut incoming = std::mem::replace(&mut self.incoming, Buffer::none());
            incoming.consume(usize::MAX);
            let (result, back) = self.read.read(incoming).await;
            self.incoming = back;
            match result {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => bytes += n,
            }
            if bytes > MAX_DISCARDED_BYTES {
                return Err(CloseReason::UpstreamIo(error));
            }
        }
    }
}

/// Bytes that [`Opening::discard`] reads at most.
const MAX_DISCARDED_BYTES: usize = 16 * 1024 * 1024;

/// The half-relay that seals TLS records: plaintext in, TLS out.
struct Sealing<'a, E> {
    session: Rc<RefCell<Session<E>>>,
    control: &'a ConnectionControl,
    closed: Rc<Cell<Option<Side>>>,
    client_side: ClientSide,
    read: Reader<'a>,
    write: WriteHalf,
    /// Plaintext that has not been sealed yet.
    plain: Buffer,
}

impl<E: TlsSide> Sealing<'_, E> {
    async fn run(&mut self) -> Result<(), CloseReason> {
        let result = self.relay_until_end().await;
        if result.is_err() {
            // While the read half keeps the descriptor open: another socket could have its number afterwards.
            reset_plain_of_link(self.control, self.client_side);
        }
        result
    }

    async fn relay_until_end(&mut self) -> Result<(), CloseReason> {
        let read_error = loop {
            if !self.plain.is_empty() {
                match self.client_side {
                    ClientSide::Tls => self.control.count_sent(self.plain.len()),
                    ClientSide::Plain => self.control.count_received(self.plain.len()),
                }
                let mut outgoing = Buffer::take(self.plain.size());
                self.session
                    .borrow_mut()
                    .seal(self.plain.filled(), &mut outgoing)
                    .map_err(CloseReason::TlsSession)?;
                self.plain.consume(usize::MAX);
                let (result, _) = self.write.write_all(outgoing).await;
                result.map_err(CloseReason::ClientIo)?;
            }
            let plain = std::mem::replace(&mut self.plain, Buffer::none());
            let (result, filled) = self.read.read(plain).await;
            self.plain = filled;
            match result {
                Ok(0) => break None,
                Ok(_) => {}
                Err(error) => break Some(error),
            }
        };
        self.plain = Buffer::none();
        if self.control.is_link() {
            return self.end_link(read_error).await;
        }
        if read_error.is_none() {
            record_close(&self.closed, Side::Plain);
        }
        self.send_close().await?;
        // The peer only has to read the final bytes and close.
        self.control.start_closing();
        read_error.map_or(Ok(()), |error| Err(CloseReason::UpstreamIo(error)))
    }

    /// Passes on the end of the plain side of a link, whose other direction continues. Without a close_notify the
    /// other member resets its side.
    async fn end_link(&mut self, read_error: Option<io::Error>) -> Result<(), CloseReason> {
        if let Some(reason) = self.control.terminate_reason() {
            return Err(reason.into());
        }
        if let Some(error) = read_error {
            return Err(CloseReason::UpstreamIo(error));
        }
        record_close(&self.closed, Side::Plain);
        self.send_close().await?;
        self.control.half_closed();
        Ok(())
    }

    /// Sends the client of a sidecar an ErrorResponse if its session was terminated, then
    /// close_notify and FIN.
    async fn send_close(&mut self) -> Result<(), CloseReason> {
        let mut outgoing = Buffer::take(Size::Small);
        {
            let mut session = self.session.borrow_mut();
            let termination = self.control.terminate_reason().map(CloseReason::from);
            let termination = termination.filter(|_| self.client_side == ClientSide::Tls);
            if let Some(response) = termination.and_then(|reason| reason.response()) {
                session
                    .seal(&response, &mut outgoing)
                    .map_err(CloseReason::TlsSession)?;
            }
            session
                .close(&mut outgoing)
                .map_err(CloseReason::TlsSession)?;
        }
        let (result, _) = self.write.write_all(outgoing).await;
        result.map_err(CloseReason::ClientIo)?;
        self.write.shutdown().await.map_err(CloseReason::ClientIo)
    }
}
