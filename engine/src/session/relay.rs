//! After the login: bytes from one side to the other, looked at by nobody.
//!
//! Two half-relays, each strictly one read and then the write of what it
//! brought, run inside one task. That bounds the memory, passes back-pressure
//! on in both directions, and lets a busy stream gather larger reads while its
//! write is under way.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::try_join;

use crate::io::buffer::{Buffer, Size};
use crate::io::stream::{Stream, WriteHalf};
use crate::session::control::ConnectionControl;
use crate::session::reader::Reader;
use crate::session::tls_stream::TlsStream;
use crate::telemetry::close_reason::CloseReason;
use crate::tls::session::{Session, TlsSide};

/// On which side the driver is, which is told why its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientSide {
    /// The sidecar's clients.
    Tls,
    /// The forwarder's.
    Plain,
}

/// Moves bytes until both directions have ended, or one failed. `first` is
/// plaintext that came from the plain side together with its last login
/// message.
///
/// No `async fn`: that would have room for its arguments beside the halves that
/// they go into, for as long as the session lasts.
pub(crate) fn relay<E: TlsSide>(
    tls: TlsStream<E>,
    plain: Stream,
    first: Buffer,
    client_side: ClientSide,
    control: &ConnectionControl,
) -> impl Future<Output = CloseReason> {
    let session = Rc::new(RefCell::new(tls.session));
    let (tls_read, tls_write) = tls.stream.into_split();
    let (plain_read, plain_write) = plain.into_split();
    let closed = Rc::new(Cell::new(None));
    let opening = Opening {
        session: Rc::clone(&session),
        control,
        closed: Rc::clone(&closed),
        client_side,
        read: Reader::new(tls_read, control.turns()),
        write: plain_write,
        incoming: tls.incoming,
    };
    let sealing = Sealing {
        session,
        control,
        closed: Rc::clone(&closed),
        client_side,
        read: match client_side {
            // From Postgres. A forwarder's driver sends as much at a time as it can.
            ClientSide::Tls => Reader::pausing(plain_read, control),
            ClientSide::Plain => Reader::new(plain_read, control.turns()),
        },
        write: tls_write,
    };
    try_join(opening.run(tls.plain), sealing.run(first)).map(move |outcome| {
        control.or_terminated(match (closed.get(), outcome) {
            (Some(Side::Plain), _) => CloseReason::UpstreamClosed,
            (Some(Side::Tls), _) | (None, Ok(_)) => CloseReason::ClientClosed,
            (None, Err(end)) => end,
        })
    })
}

/// Which side ended its stream, and with it the session.
#[derive(Clone, Copy)]
enum Side {
    Tls,
    Plain,
}

/// The first end is the reason; the other side's only follows it.
fn first(closed: &Cell<Option<Side>>, side: Side) {
    closed.set(closed.get().or(Some(side)));
}

/// TLS in, plaintext out.
struct Opening<'a, E> {
    session: Rc<RefCell<Session<E>>>,
    control: &'a ConnectionControl,
    closed: Rc<Cell<Option<Side>>>,
    client_side: ClientSide,
    read: Reader<'a>,
    write: WriteHalf,
    /// Ciphertext that has been read and not opened.
    incoming: Buffer,
}

impl<E: TlsSide> Opening<'_, E> {
    async fn run(mut self, plain: Buffer) -> Result<(), CloseReason> {
        let mut end = self.pump(plain).await;
        if self.client_side == ClientSide::Plain {
            if end.is_ok() && self.closed.get().is_none() && self.control.bytes().1 == 0 {
                // Not a word to somebody who waits for one.
                end = Err(CloseReason::ClientIo(io::ErrorKind::UnexpectedEof.into()));
            }
            self.say_goodbye(end.as_ref().err()).await;
        }
        end?;
        first(&self.closed, Side::Tls);
        // An error here means that Postgres hung up at the same time.
        let _ = self.write.shutdown().await;
        if self.client_side == ClientSide::Plain {
            // An idle driver may not look for hours, and holds nothing by that.
            self.control.closing();
        }
        Ok(())
    }

    /// Tells a driver in plaintext why its session ends: by our order, or by an
    /// error before the server has said a word.
    async fn say_goodbye(&mut self, error: Option<&CloseReason>) {
        let order = self.control.terminate_reason().map(CloseReason::from);
        let error = error.filter(|_| self.control.bytes().1 == 0);
        if let Some(text) = order
            .as_ref()
            .or(error)
            .and_then(CloseReason::driver_response)
        {
            let mut words = Buffer::take(Size::Small);
            if words.extend(&text) {
                let _ = self.write.write_all(words).await;
            }
        }
    }

    async fn pump(&mut self, mut plain: Buffer) -> Result<(), CloseReason> {
        loop {
            if !plain.is_empty() {
                match self.client_side {
                    ClientSide::Tls => self.control.count_received(plain.len()),
                    ClientSide::Plain => self.control.count_sent(plain.len()),
                }
                let (result, _) = self.write.write_all(plain).await;
                if let Err(error) = result {
                    return self.discard(error).await;
                }
            }
            if self.session.borrow().peer_closed() {
                break;
            }
            let incoming = std::mem::replace(&mut self.incoming, Buffer::none());
            let (result, filled) = self.read.read(incoming.make_room()).await;
            self.incoming = filled;
            match result {
                // Without a close_notify, as many clients do it; Postgres'
                // messages carry their length, so a cut one is noticed.
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(CloseReason::ClientIo(error)),
            }
            plain = Buffer::take(self.incoming.size());
            self.session
                .borrow_mut()
                .open(&mut self.incoming, &mut plain)
                .map_err(CloseReason::TlsSession)?;
        }
        Ok(())
    }

    /// Postgres takes no more bytes: it has closed, and what it said last is
    /// on its way through the other half. The client's are read and dropped,
    /// since closing over unread bytes would reset the connection and lose
    /// those last words.
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
            if bytes > DISCARD_MOST {
                return Err(CloseReason::UpstreamIo(error));
            }
        }
    }
}

/// Bytes of a client that are read and dropped after Postgres has gone.
const DISCARD_MOST: usize = 16 * 1024 * 1024;

/// Plaintext in, TLS out.
struct Sealing<'a, E> {
    session: Rc<RefCell<Session<E>>>,
    control: &'a ConnectionControl,
    closed: Rc<Cell<Option<Side>>>,
    client_side: ClientSide,
    read: Reader<'a>,
    write: WriteHalf,
}

impl<E: TlsSide> Sealing<'_, E> {
    async fn run(mut self, mut plain: Buffer) -> Result<(), CloseReason> {
        let cause = loop {
            if !plain.is_empty() {
                match self.client_side {
                    ClientSide::Tls => self.control.count_sent(plain.len()),
                    ClientSide::Plain => self.control.count_received(plain.len()),
                }
                let mut outgoing = Buffer::take(plain.size());
                self.session
                    .borrow_mut()
                    .seal(plain.filled(), &mut outgoing)
                    .map_err(CloseReason::TlsSession)?;
                plain.consume(usize::MAX);
                let (result, _) = self.write.write_all(outgoing).await;
                result.map_err(CloseReason::ClientIo)?;
            }
            let (result, filled) = self.read.read(plain).await;
            plain = filled;
            match result {
                Ok(0) => break None,
                Ok(_) => {}
                Err(error) => break Some(error),
            }
        };
        drop(plain);
        if cause.is_none() {
            first(&self.closed, Side::Plain);
        }
        self.say_goodbye().await?;
        // What is left to do is to let the client read and close.
        self.control.closing();
        cause.map_or(Ok(()), |error| Err(CloseReason::UpstreamIo(error)))
    }

    async fn say_goodbye(&mut self) -> Result<(), CloseReason> {
        let mut outgoing = Buffer::take(Size::Small);
        {
            let mut session = self.session.borrow_mut();
            let order = self.control.terminate_reason().map(CloseReason::from);
            let order = order.filter(|_| self.client_side == ClientSide::Tls);
            if let Some(text) = order.and_then(|end| end.response()) {
                session
                    .seal(&text, &mut outgoing)
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
