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
use crate::session::control::Control;
use crate::session::reader::Reader;
use crate::session::tls_stream::TlsStream;
use crate::telemetry::close_reason::End;
use crate::tls::session::{Endpoint, Session};

/// On which side the driver is, which is told why its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The sidecar's clients.
    InTls,
    /// The forwarder's.
    InPlain,
}

/// Moves bytes until both directions have ended, or one failed. `first` is
/// plaintext that came from the plain side together with its last login
/// message.
///
/// No `async fn`: that would have room for its arguments beside the halves that
/// they go into, for as long as the session lasts.
pub(crate) fn relay<E: Endpoint>(
    tls: TlsStream<E>,
    plain: Stream,
    first: Buffer,
    driver: Driver,
    control: &Control,
) -> impl Future<Output = End> {
    let session = Rc::new(RefCell::new(tls.session));
    let (tls_read, tls_write) = tls.stream.into_split();
    let (plain_read, plain_write) = plain.into_split();
    let closed = Rc::new(Cell::new(None));
    let opening = Opening {
        session: Rc::clone(&session),
        control,
        closed: Rc::clone(&closed),
        driver,
        read: Reader::new(tls_read, control.turns()),
        write: plain_write,
        incoming: tls.incoming,
    };
    let sealing = Sealing {
        session,
        control,
        closed: Rc::clone(&closed),
        driver,
        read: match driver {
            // From Postgres. A forwarder's driver sends as much at a time as it can.
            Driver::InTls => Reader::pausing(plain_read, control),
            Driver::InPlain => Reader::new(plain_read, control.turns()),
        },
        write: tls_write,
    };
    try_join(opening.run(tls.plain), sealing.run(first)).map(move |outcome| {
        control.end_or(match (closed.get(), outcome) {
            (Some(Side::Plain), _) => End::UpstreamClosed,
            (Some(Side::Tls), _) | (None, Ok(_)) => End::ClientClosed,
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
    control: &'a Control,
    closed: Rc<Cell<Option<Side>>>,
    driver: Driver,
    read: Reader<'a>,
    write: WriteHalf,
    /// Ciphertext that has been read and not opened.
    incoming: Buffer,
}

impl<E: Endpoint> Opening<'_, E> {
    async fn run(mut self, plain: Buffer) -> Result<(), End> {
        let mut end = self.pump(plain).await;
        if self.driver == Driver::InPlain {
            if end.is_ok() && self.closed.get().is_none() && self.control.bytes().1 == 0 {
                // Not a word to somebody who waits for one.
                end = Err(End::ClientIo(io::ErrorKind::UnexpectedEof.into()));
            }
            self.say_goodbye(end.as_ref().err()).await;
        }
        end?;
        first(&self.closed, Side::Tls);
        // An error here means that Postgres hung up at the same time.
        let _ = self.write.shutdown().await;
        if self.driver == Driver::InPlain {
            // An idle driver may not look for hours, and holds nothing by that.
            self.control.closing();
        }
        Ok(())
    }

    /// Tells a driver in plaintext why its session ends: by our order, or by an
    /// error before the server has said a word.
    async fn say_goodbye(&mut self, error: Option<&End>) {
        let order = self.control.asked_to_end().map(End::from);
        let error = error.filter(|_| self.control.bytes().1 == 0);
        if let Some(text) = order.as_ref().or(error).and_then(End::response_to_a_driver) {
            let mut words = Buffer::take(Size::Small);
            if words.extend(&text) {
                let _ = self.write.write_all(words).await;
            }
        }
    }

    async fn pump(&mut self, mut plain: Buffer) -> Result<(), End> {
        loop {
            if !plain.is_empty() {
                match self.driver {
                    Driver::InTls => self.control.count_received(plain.len()),
                    Driver::InPlain => self.control.count_sent(plain.len()),
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
                Err(error) => return Err(End::ClientIo(error)),
            }
            plain = Buffer::take(self.incoming.size());
            self.session
                .borrow_mut()
                .open(&mut self.incoming, &mut plain)
                .map_err(End::TlsSession)?;
        }
        Ok(())
    }

    /// Postgres takes no more bytes: it has closed, and what it said last is
    /// on its way through the other half. The client's are read and dropped,
    /// since closing over unread bytes would reset the connection and lose
    /// those last words.
    async fn discard(&mut self, error: io::Error) -> Result<(), End> {
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
                return Err(End::UpstreamIo(error));
            }
        }
    }
}

/// Bytes of a client that are read and dropped after Postgres has gone.
const DISCARD_MOST: usize = 16 * 1024 * 1024;

/// Plaintext in, TLS out.
struct Sealing<'a, E> {
    session: Rc<RefCell<Session<E>>>,
    control: &'a Control,
    closed: Rc<Cell<Option<Side>>>,
    driver: Driver,
    read: Reader<'a>,
    write: WriteHalf,
}

impl<E: Endpoint> Sealing<'_, E> {
    async fn run(mut self, mut plain: Buffer) -> Result<(), End> {
        let cause = loop {
            if !plain.is_empty() {
                match self.driver {
                    Driver::InTls => self.control.count_sent(plain.len()),
                    Driver::InPlain => self.control.count_received(plain.len()),
                }
                let mut outgoing = Buffer::take(plain.size());
                self.session
                    .borrow_mut()
                    .seal(plain.filled(), &mut outgoing)
                    .map_err(End::TlsSession)?;
                plain.consume(usize::MAX);
                let (result, _) = self.write.write_all(outgoing).await;
                result.map_err(End::ClientIo)?;
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
        cause.map_or(Ok(()), |error| Err(End::UpstreamIo(error)))
    }

    async fn say_goodbye(&mut self) -> Result<(), End> {
        let mut outgoing = Buffer::take(Size::Small);
        {
            let mut session = self.session.borrow_mut();
            let order = self.control.asked_to_end().map(End::from);
            let order = order.filter(|_| self.driver == Driver::InTls);
            if let Some(text) = order.and_then(|end| end.response()) {
                session
                    .seal(&text, &mut outgoing)
                    .map_err(End::TlsSession)?;
            }
            session.close(&mut outgoing).map_err(End::TlsSession)?;
        }
        let (result, _) = self.write.write_all(outgoing).await;
        result.map_err(End::ClientIo)?;
        self.write.shutdown().await.map_err(End::ClientIo)
    }
}
