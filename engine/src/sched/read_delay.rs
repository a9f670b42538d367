//! Read coalescing for long results, as interrupt moderation does it: a session that reads
//! faster than Postgres sends waits a moment, and then reads many bytes in one call.
//!
//! Postgres sends a result in pieces of 8 KiB. Reading each as it arrives, with a sleep in
//! between or without, costs more than handling the bytes
//! (docs/adr/0012-read-coalescing-for-streams.md has the figures). A result must never
//! complete noticeably later, and a client that has sent something never waits for a delay.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::io::buffer;
use crate::sched::delay_timer::TimerQueue;

/// Bytes that make a stream if no read in between is short.
const STREAM_BYTES: usize = 256 * 1024;
/// A delay is at most this fraction of the stream's duration so far: a result completes at
/// most 6 % later.
const DELAY_FRACTION: u32 = 16;
/// A shorter delay costs as much as it saves.
const MIN_DELAY: Duration = Duration::from_micros(50);
/// Postgres sends at most about a megabyte in this time, which the sockets' buffers hold.
const MAX_DELAY: Duration = Duration::from_millis(1);

/// What a delay on a Unix socket should bring. The sender's buffer holds some 139 KB (212,992 bytes of
/// `net.core.wmem_default`, of which a message of 8 KiB takes 12.5 KB), and more would stop Postgres.
const UNIX_BYTES: usize = 96 * 1024;

/// Decides when one direction of a session delays its next read, and for how long.
pub(crate) struct ReadCoalescer<'a> {
    timers: &'a Rc<TimerQueue>,
    /// Bytes from the client so far: a change is a new query, and begins a new stream.
    client_bytes: &'a Cell<u64>,
    /// Its value when the stream began.
    client_bytes_at_start: u64,
    /// Bytes since the last short read or query.
    stream_bytes: usize,
    /// When they became a stream.
    stream_since: Option<Instant>,
    /// On a Unix socket, whose buffer is small.
    fill: Option<SocketFill>,
}

/// The length of the delays on a Unix socket: the time in which Postgres sends [`UNIX_BYTES`], as the last delays
/// showed.
struct SocketFill {
    length: Duration,
    /// Whether the next read follows a delay of this length.
    measures: bool,
}

impl SocketFill {
    /// Adjusts the length after a delay that brought `n` bytes, by at most a factor of two.
    fn observe(&mut self, n: usize) {
        if std::mem::take(&mut self.measures) {
            let (micros, n) = (self.length.as_micros() as u64, n.max(1) as u64);
            let next = (micros * UNIX_BYTES as u64 / n).clamp(micros / 2, micros * 2);
            self.length = Duration::from_micros(next).clamp(MIN_DELAY, MAX_DELAY);
        }
    }
}

impl<'a> ReadCoalescer<'a> {
    pub(crate) fn new(timers: &'a Rc<TimerQueue>, client_bytes: &'a Cell<u64>) -> Self {
        Self {
            timers,
            client_bytes,
            client_bytes_at_start: client_bytes.get(),
            stream_bytes: 0,
            stream_since: None,
            fill: None,
        }
    }

    /// For a Unix socket.
    pub(crate) fn for_unix_socket(self) -> Self {
        Self {
            fill: Some(SocketFill {
                length: MIN_DELAY,
                measures: false,
            }),
            ..self
        }
    }

    /// Records a read of `n` bytes.
    pub(crate) fn observe(&mut self, n: usize) {
        if let Some(fill) = &mut self.fill {
            fill.observe(n);
        }
        if n < buffer::SMALL || self.client_has_sent() {
            self.reset();
        } else {
            self.stream_bytes = self.stream_bytes.saturating_add(n);
        }
    }

    /// Delays the next read, if the bytes are a stream. Returns `false` if it did not, or if
    /// the client has sent something meanwhile.
    pub(crate) async fn delay(&mut self) -> bool {
        let Some(length) = self.delay_length(Instant::now) else {
            return false;
        };
        // Without a timer the stream continues without delays.
        let _ = self.timers.delay(length, || self.client_has_sent()).await;
        !self.client_has_sent()
    }

    /// Begins a new stream: after a query, a short read, or a delay that brought no bytes.
    pub(crate) fn reset(&mut self) {
        self.client_bytes_at_start = self.client_bytes.get();
        self.stream_bytes = 0;
        self.stream_since = None;
    }

    fn client_has_sent(&self) -> bool {
        self.client_bytes_at_start != self.client_bytes.get()
    }

    fn delay_length(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.client_has_sent() {
            self.reset();
        }
        if self.stream_bytes < STREAM_BYTES {
            return None;
        }
        let now = now();
        let duration = now.saturating_duration_since(*self.stream_since.get_or_insert(now));
        let length = duration / DELAY_FRACTION;
        if length < MIN_DELAY {
            return None;
        }
        Some(match &mut self.fill {
            None => length.min(MAX_DELAY),
            Some(fill) => {
                fill.measures = length >= fill.length;
                length.min(fill.length)
            }
        })
    }
}

#[cfg(test)]
impl<'a> ReadCoalescer<'a> {
    /// In a stream that began a second ago.
    pub(crate) fn in_stream(timers: &'a Rc<TimerQueue>, client_bytes: &'a Cell<u64>) -> Self {
        Self {
            stream_bytes: STREAM_BYTES,
            stream_since: Instant::now().checked_sub(Duration::from_secs(1)),
            ..Self::new(timers, client_bytes)
        }
    }

    pub(crate) fn is_in_stream(&self) -> bool {
        self.stream_bytes >= STREAM_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    /// The delay after these reads, in a stream that has lasted for `duration`.
    fn delay_after(reads: &[usize], duration: Duration) -> Option<Duration> {
        let (timers, client_bytes) = (Rc::default(), Cell::new(7));
        let mut coalescer = ReadCoalescer::new(&timers, &client_bytes);
        reads.iter().for_each(|n| coalescer.observe(*n));
        let start = Instant::now();
        assert_eq!(coalescer.delay_length(|| start), None, "at the start");
        coalescer.delay_length(|| start + duration)
    }

    #[test]
    fn a_delay_is_a_fraction_of_the_duration_of_the_stream() {
        let stream = [buffer::SMALL; STREAM_BYTES / buffer::SMALL];
        for (duration, delay) in [
            (799, None),
            (800, Some(50)),
            (1600, Some(100)),
            (17_000, Some(1000)),
        ] {
            assert_eq!(
                delay_after(&stream, Duration::from_micros(duration)),
                delay.map(Duration::from_micros),
                "{duration}"
            );
        }
    }

    #[test]
    fn delays_on_a_unix_socket_follow_what_they_bring() {
        let (timers, client_bytes) = (Rc::default(), Cell::new(0));
        let mut coalescer = ReadCoalescer::in_stream(&timers, &client_bytes).for_unix_socket();
        let mut delay = |n: usize| {
            coalescer.observe(n);
            coalescer.delay_length(Instant::now).map(|d| d.as_micros())
        };
        assert_eq!(delay(buffer::LARGE), Some(50));
        // Half of what it should be, then a fifth: at most twice as long.
        assert_eq!(delay(UNIX_BYTES / 2), Some(100));
        assert_eq!(delay(UNIX_BYTES / 5), Some(200));
        assert_eq!(delay(UNIX_BYTES), Some(200));
        assert_eq!(delay(buffer::LARGE), Some(150));
        // Never shorter than what pays, and never longer than over TCP.
        assert_eq!((0..9).map(|_| delay(buffer::LARGE)).last(), Some(Some(50)));
        assert_eq!(
            (0..9).map(|_| delay(buffer::SMALL)).last(),
            Some(Some(1000))
        );
    }

    #[test]
    fn only_streams_are_delayed() {
        let almost = [buffer::SMALL; STREAM_BYTES / buffer::SMALL - 1];
        let mut short = almost.to_vec();
        short.extend([buffer::SMALL - 1, buffer::SMALL]);
        for (reads, is_delayed) in [
            (&almost[..], false),
            (&short, false),
            (&[buffer::LARGE, buffer::LARGE], true),
            (&[buffer::LARGE, buffer::LARGE, 1], false),
        ] {
            let delay = delay_after(reads, Duration::from_secs(1));
            assert_eq!(delay.is_some(), is_delayed, "{reads:?}");
        }
    }

    #[test]
    fn a_query_begins_a_new_stream() {
        let (timers, client_bytes) = (Rc::default(), Cell::new(0));
        let mut coalescer = ReadCoalescer::in_stream(&timers, &client_bytes);
        assert!(coalescer.delay_length(Instant::now).is_some());
        client_bytes.set(1);
        assert_eq!(coalescer.delay_length(Instant::now), None);

        let mut coalescer = ReadCoalescer::in_stream(&timers, &client_bytes);
        client_bytes.set(2);
        coalescer.observe(buffer::LARGE);
        assert!(!coalescer.is_in_stream());
    }

    #[test]
    fn a_query_ends_the_delay() {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let ran = block_on(driver, async {
                let (timers, client_bytes) = (Rc::default(), Cell::new(0));
                let mut coalescer = ReadCoalescer::in_stream(&timers, &client_bytes);
                let mut delay = pin!(coalescer.delay());
                assert_eq!(delay.as_mut().now_or_never(), None);
                client_bytes.set(1);
                // The session's task is polled when its other direction has moved bytes.
                assert_eq!(delay.as_mut().now_or_never(), Some(false));
            });
            if let Err(error) = ran {
                println!("skipped {driver}: {error}");
            }
        }
    }
}
