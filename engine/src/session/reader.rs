//! One direction's reads: when to wait, when to delay, and with which buffer.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;

use crate::io::buffer::{Buffer, Size};
use crate::io::stream::ReadHalf;
use crate::sched::read_delay::ReadCoalescer;
use crate::sched::yield_budget::YieldBudget;
use crate::session::control::ConnectionControl;

/// After this many consecutive reads that would have fitted into a smaller buffer, the reader uses the
/// smaller one.
const SHRINK_AFTER: u32 = 8;

/// Reads one direction of a session, with buffers whose size adapts to the last reads. A session starts
/// with tiny buffers, and returns to them when it is idle. It waits with a tiny buffer; larger ones are
/// taken from the pool only once bytes have arrived.
pub(crate) struct Reader<'a> {
    half: ReadHalf,
    size: Size,
    short_reads: u32,
    /// The number of bytes of the last read.
    last: usize,
    /// For the side that sends small pieces.
    coalescer: Option<ReadCoalescer<'a>>,
    /// On epoll, where nothing else bounds a stream.
    budget: Option<YieldBudget>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(half: ReadHalf) -> Self {
        Self {
            half,
            budget: YieldBudget::new(),
            size: Size::Tiny,
            short_reads: 0,
            last: 0,
            coalescer: None,
        }
    }

    /// A reader that coalesces the reads of a stream of small pieces.
    pub(crate) fn coalescing(half: ReadHalf, control: &'a ConnectionControl) -> Self {
        let coalescer = ReadCoalescer::new(control.timers(), control.client_bytes());
        let coalescer = match half {
            ReadHalf::Tcp(_) => coalescer,
            ReadHalf::Unix(_) => coalescer.for_unix_socket(),
        };
        Self {
            coalescer: Some(coalescer),
            ..Self::new(half)
        }
    }

    /// Reads once and appends to `buffer`. 0 is the end of the stream.
    pub(crate) async fn read(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        if let Some(budget) = &mut self.budget {
            budget.yield_if_exhausted().await;
        }
        let mut waited = false;
        let (result, buffer) = {
            let mut reading = pin!(self.read_once(buffer));
            poll_fn(|cx| {
                let read = reading.as_mut().poll(cx);
                waited |= read.is_pending();
                read
            })
            .await
        };
        if let Ok(n) = result {
            self.record_read(n);
            if let Some(budget) = &mut self.budget {
                budget.consume(n, waited);
            }
        }
        (result, buffer)
    }

    async fn read_once(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        if self.size == Size::Tiny {
            self.half.read(self.resize(buffer)).await
        } else {
            self.read_when_readable(buffer).await
        }
    }

    async fn read_when_readable(&mut self, mut buffer: Buffer) -> (io::Result<usize>, Buffer) {
        // A read that was not full has emptied the socket: the moment for a delay. If none is
        // due and the read was large, more bytes have usually arrived by now.
        let mut taken_all = self.last < self.size.bytes();
        let mut wait = self.last < Size::Small.bytes();
        let mut delayed = false;
        loop {
            if taken_all {
                if buffer.is_empty() {
                    buffer = Buffer::none();
                }
                if let Some(coalescer) = &mut self.coalescer {
                    if delayed {
                        coalescer.reset();
                    }
                    delayed = coalescer.delay().await;
                }
                if wait
                    && !delayed
                    && let Err(error) = self.half.readable().await
                {
                    return (Err(error), buffer);
                }
            }
            buffer = self.resize(buffer);
            match self.half.read_now(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    (taken_all, wait) = (true, true);
                }
                result => return (result, buffer),
            }
        }
    }

    fn record_read(&mut self, n: usize) {
        self.last = n;
        if let Some(coalescer) = &mut self.coalescer {
            coalescer.observe(n);
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

    /// Returns a buffer of the current size or larger, with the bytes of `buffer`.
    fn resize(&self, mut buffer: Buffer) -> Buffer {
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
    use std::cell::Cell;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::rc::Rc;

    use futures_util::FutureExt as _;
    use monoio::io::Splitable as _;
    use monoio::net::UnixStream;

    use super::*;
    use crate::io::buffer::{LARGE, SMALL, TINY};
    use crate::io::driver::{self, IoDriver};
    use crate::sched::delay_timer::TimerQueue;

    /// Runs `test` with a reader and its peer, on both drivers.
    fn on_both(test: impl AsyncFn(Reader<'_>, StdUnixStream)) {
        for interface in [IoDriver::Epoll, IoDriver::IoUring] {
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
            reader.record_read(100);
            assert_eq!(reader.size, Size::Tiny);
            reader.record_read(TINY);
            assert_eq!(reader.size, Size::Small);
            reader.record_read(SMALL);
            assert_eq!(reader.size, Size::Large);
            for _ in 0..SHRINK_AFTER {
                assert_eq!(reader.size, Size::Large);
                reader.record_read(TINY);
            }
            assert_eq!(reader.size, Size::Small);
            // A read that would not have fitted into a tiny buffer restarts the count.
            for n in [1, 1, 1, TINY, 1, 1, 1, 1, 1, 1, 1] {
                reader.record_read(n);
            }
            assert_eq!(reader.size, Size::Small);
            reader.record_read(1);
            assert_eq!(reader.size, Size::Tiny);
        });
    }

    #[test]
    fn resize_keeps_the_bytes() {
        on_both(async |mut reader, _far| {
            reader.size = Size::Large;
            let mut buffer = Buffer::take(Size::Tiny);
            assert!(buffer.extend(b"half a record"));
            let buffer = reader.resize(buffer);
            assert_eq!(buffer.size(), Size::Large);
            reader.size = Size::Tiny;
            let buffer = reader.resize(buffer);
            assert_eq!(
                (buffer.size(), buffer.filled()),
                (Size::Large, &b"half a record"[..])
            );
        });
    }

    #[test]
    fn reads_a_stream_with_every_size_to_its_end() {
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
    fn a_delay_without_bytes_ends_the_stream() {
        on_both(async |reader, mut far| {
            let client_bytes = Cell::new(0);
            let (timers, no_timer) = (Rc::default(), TimerQueue::unavailable());
            let mut reader: Reader<'_> = reader;
            for (timers, goes_on) in [(&timers, true), (&no_timer, false)] {
                reader.size = Size::Large;
                reader.last = LARGE;
                reader.coalescer = Some(ReadCoalescer::in_stream(timers, &client_bytes));
                {
                    let mut read = std::pin::pin!(reader.read(Buffer::none()));
                    // It is delayed, or was delayed, and waits.
                    assert!(read.as_mut().now_or_never().is_none());
                    far.write_all(&[1; SMALL]).unwrap();
                    assert_eq!(read.await.0.unwrap(), SMALL);
                }
                let coalescer = reader.coalescer.as_ref().unwrap();
                assert_eq!(coalescer.is_in_stream(), goes_on);
            }
        });
    }

    #[test]
    fn a_read_is_delayed_when_the_last_one_emptied_the_socket() {
        on_both(async |reader, mut far| {
            let (client_bytes, timers) = (Cell::new(0), Rc::default());
            let mut reader: Reader<'_> = reader;
            for (last, is_delayed) in [(LARGE, false), (LARGE - 1, true)] {
                reader.size = Size::Large;
                reader.last = last;
                reader.coalescer = Some(ReadCoalescer::in_stream(&timers, &client_bytes));
                far.write_all(&[1; SMALL]).unwrap();
                let mut read = std::pin::pin!(reader.read(Buffer::none()));
                let at_once = read.as_mut().now_or_never();
                assert_eq!(at_once.is_none(), is_delayed, "{last}");
                let (result, _) = match at_once {
                    Some(done) => done,
                    None => read.await,
                };
                assert_eq!(result.unwrap(), SMALL);
            }
        });
    }

    #[test]
    fn a_read_waits_without_a_large_buffer() {
        on_both(async |mut reader, mut far| {
            for (size, last) in [(Size::Small, 0), (Size::Large, LARGE)] {
                (reader.size, reader.last) = (size, last);
                let before = crate::io::buffer::pooled(size);
                {
                    let buffer = Buffer::take(size);
                    let mut read = std::pin::pin!(reader.read(buffer));
                    assert!(read.as_mut().now_or_never().is_none());
                    assert!(crate::io::buffer::pooled(size) >= before.max(1), "{size:?}");
                    far.write_all(b"at last").unwrap();
                    let (result, filled) = read.await;
                    assert_eq!(result.unwrap(), 7);
                    assert_eq!(filled.filled(), b"at last");
                }
            }
        });
    }
}
