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

use crate::buffer::{Buffer, Size};
use crate::control::Control;
use crate::end::End;
use crate::net::{ReadHalf, Stream, WriteHalf};
use crate::pause::Pacing;
use crate::stream::TlsStream;
use crate::tls::{Endpoint, Session};

/// A buffer is given back for a smaller one after this many reads in a row that
/// that would have held.
const SHRINK_AFTER: u32 = 8;

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
        read: Reader::new(tls_read),
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
            Driver::InPlain => Reader::new(plain_read),
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

/// Reads, and decides on buffers by what the last reads brought: a session begins
/// with tiny ones, which it may wait with, and comes back to them. Larger ones
/// are only held while there is something to read.
struct Reader<'a> {
    half: ReadHalf,
    size: Size,
    short_reads: u32,
    /// What the last read brought.
    last: usize,
    /// For the side that sends little at a time.
    pacing: Option<Pacing<'a>>,
}

impl<'a> Reader<'a> {
    fn new(half: ReadHalf) -> Self {
        Self {
            half,
            size: Size::Tiny,
            short_reads: 0,
            last: 0,
            pacing: None,
        }
    }

    /// One that pauses in a stream of small pieces. Not on a Unix socket, which holds
    /// too little: a pause stops the sender.
    fn pausing(half: ReadHalf, control: &'a Control) -> Self {
        let pacing = match half {
            ReadHalf::Tcp(_) => Some(Pacing::new(control.pauses(), control.questions())),
            ReadHalf::Unix(_) => None,
        };
        Self {
            pacing,
            ..Self::new(half)
        }
    }

    /// Reads once, behind what `buffer` holds; 0 is the end of the stream.
    async fn read(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        let (result, buffer) = if self.size == Size::Tiny {
            self.half.read(self.fit(buffer)).await
        } else {
            self.read_when_readable(buffer).await
        };
        if let Ok(n) = result {
            self.saw(n);
        }
        (result, buffer)
    }

    async fn read_when_readable(&mut self, mut buffer: Buffer) -> (io::Result<usize>, Buffer) {
        // A read that was not full took all that there was: the moment for a pause. Where
        // none is due, and much came, more is mostly there by now.
        let mut taken_all = self.last < self.size.bytes();
        let mut wait = self.last < Size::Small.bytes();
        let mut paused = false;
        loop {
            if taken_all {
                if buffer.is_empty() {
                    buffer = Buffer::none();
                }
                if let Some(pacing) = &mut self.pacing {
                    if paused {
                        pacing.begin_anew();
                    }
                    paused = pacing.pause().await;
                }
                if wait
                    && !paused
                    && let Err(error) = self.half.readable().await
                {
                    return (Err(error), buffer);
                }
            }
            buffer = self.fit(buffer);
            match self.half.read_now(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    (taken_all, wait) = (true, true);
                }
                result => return (result, buffer),
            }
        }
    }

    fn saw(&mut self, n: usize) {
        self.last = n;
        if let Some(pacing) = &mut self.pacing {
            pacing.saw(n);
        }
        if n >= self.size.bytes() {
            self.size = self.size.larger();
            self.short_reads = 0;
        } else if n < self.size.smaller().bytes() {
            self.short_reads += 1;
            if self.short_reads >= SHRINK_AFTER {
                self.size = self.size.smaller();
                self.short_reads = 0;
            }
        } else {
            self.short_reads = 0;
        }
    }

    /// The buffer for the next read: with what `buffer` holds, and large enough.
    fn fit(&self, mut buffer: Buffer) -> Buffer {
        if buffer.is_empty() {
            return Buffer::take(self.size);
        }
        while buffer.size() < self.size {
            buffer = buffer.grown();
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use monoio::io::Splitable as _;
    use monoio::net::UnixStream;

    use super::*;
    use crate::buffer::{LARGE, SMALL, TINY};
    use crate::driver::{self, Driver as Interface};
    use crate::pause::Pauses;

    /// Runs `test` with a reader and its peer, on both drivers.
    fn on_both(test: impl AsyncFn(Reader<'static>, StdUnixStream)) {
        for interface in [Interface::Epoll, Interface::IoUring] {
            let ran = driver::block_on(interface, async {
                let (far, near) = StdUnixStream::pair().unwrap();
                near.set_nonblocking(monoio::utils::is_legacy()).unwrap();
                let (read, write) = UnixStream::from_std(near).unwrap().into_split();
                test(Reader::new(ReadHalf::Unix(read)), far).await;
                drop(write);
            });
            if let Err(error) = ran {
                println!("skipped {interface}: {error}");
            }
        }
    }

    #[test]
    fn buffers_grow_with_full_reads_and_shrink_with_short_ones() {
        on_both(async |mut reader, _far| {
            reader.saw(100);
            assert_eq!(reader.size, Size::Tiny);
            reader.saw(TINY);
            assert_eq!(reader.size, Size::Small);
            reader.saw(SMALL);
            assert_eq!(reader.size, Size::Large);
            for _ in 0..SHRINK_AFTER {
                assert_eq!(reader.size, Size::Large);
                reader.saw(TINY);
            }
            assert_eq!(reader.size, Size::Small);
            // What a tiny one would not have held keeps it.
            for n in [1, 1, 1, TINY, 1, 1, 1, 1, 1, 1, 1] {
                reader.saw(n);
            }
            assert_eq!(reader.size, Size::Small);
            reader.saw(1);
            assert_eq!(reader.size, Size::Tiny);
        });
    }

    #[test]
    fn a_buffer_with_bytes_in_it_keeps_them() {
        on_both(async |mut reader, _far| {
            reader.size = Size::Large;
            let mut buffer = Buffer::take(Size::Tiny);
            assert!(buffer.extend(b"half a record"));
            let buffer = reader.fit(buffer);
            assert_eq!(buffer.size(), Size::Large);
            reader.size = Size::Tiny;
            let buffer = reader.fit(buffer);
            assert_eq!(
                (buffer.size(), buffer.filled()),
                (Size::Large, &b"half a record"[..])
            );
        });
    }

    #[test]
    fn every_size_reads_to_the_end() {
        on_both(async |mut reader, mut far| {
            let sent: Vec<u8> = (0..3 * LARGE).map(|i| (i % 251) as u8).collect();
            let bytes = sent.clone();
            let writer = std::thread::spawn(move || far.write_all(&bytes).unwrap());
            let mut received = Vec::new();
            let mut sizes = Vec::new();
            let mut buffer = Buffer::none();
            loop {
                let (result, filled) = reader.read(buffer).await;
                let n = result.unwrap();
                received.extend_from_slice(filled.filled());
                sizes.push(filled.size());
                buffer = filled;
                buffer.consume(usize::MAX);
                if n == 0 {
                    break;
                }
            }
            writer.join().unwrap();
            assert!(received == sent, "{} bytes", received.len());
            for size in [Size::Tiny, Size::Small, Size::Large] {
                assert!(sizes.contains(&size), "{size:?}");
            }
        });
    }

    #[test]
    fn a_stream_is_over_when_a_pause_brings_nothing() {
        on_both(async |reader, mut far| {
            let (questions, timed, untimed) = (Cell::new(0), Rc::default(), Pauses::without_time());
            let mut reader: Reader<'_> = reader;
            for (pauses, goes_on) in [(&timed, true), (&untimed, false)] {
                reader.size = Size::Large;
                reader.last = LARGE;
                reader.pacing = Some(Pacing::in_a_stream(pauses, &questions));
                {
                    let mut read = std::pin::pin!(reader.read(Buffer::none()));
                    // It pauses, or has paused, and waits.
                    assert!(read.as_mut().now_or_never().is_none());
                    far.write_all(&[1; SMALL]).unwrap();
                    assert_eq!(read.await.0.unwrap(), SMALL);
                }
                let pacing = reader.pacing.as_ref().unwrap();
                assert_eq!(pacing.is_in_a_stream(), goes_on);
            }
        });
    }

    #[test]
    fn a_stream_pauses_when_it_has_taken_all() {
        on_both(async |reader, mut far| {
            let (questions, pauses) = (Cell::new(0), Rc::default());
            let mut reader: Reader<'_> = reader;
            for (last, paused) in [(LARGE, false), (LARGE - 1, true)] {
                reader.size = Size::Large;
                reader.last = last;
                reader.pacing = Some(Pacing::in_a_stream(&pauses, &questions));
                far.write_all(&[1; SMALL]).unwrap();
                let mut read = std::pin::pin!(reader.read(Buffer::none()));
                let at_once = read.as_mut().now_or_never();
                assert_eq!(at_once.is_none(), paused, "{last}");
                let (result, _) = match at_once {
                    Some(done) => done,
                    None => read.await,
                };
                assert_eq!(result.unwrap(), SMALL);
            }
        });
    }

    #[test]
    fn who_waits_for_much_waits_without_a_buffer() {
        on_both(async |mut reader, mut far| {
            for (size, last) in [(Size::Small, 0), (Size::Large, LARGE)] {
                (reader.size, reader.last) = (size, last);
                let before = crate::buffer::pooled(size);
                {
                    let buffer = Buffer::take(size);
                    let mut read = std::pin::pin!(reader.read(buffer));
                    assert!(read.as_mut().now_or_never().is_none());
                    assert!(crate::buffer::pooled(size) >= before.max(1), "{size:?}");
                    far.write_all(b"at last").unwrap();
                    let (result, filled) = read.await;
                    assert_eq!(result.unwrap(), 7);
                    assert_eq!(filled.filled(), b"at last");
                }
            }
        });
    }
}
