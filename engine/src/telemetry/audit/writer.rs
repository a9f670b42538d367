//! The audit thread: takes events from the queues, makes lines of them, and appends them.
//!
//! Lines are written in batches. A line that cannot be written stays in memory and is tried again;
//! meanwhile the queues fill up, and the shards count what finds no place. Once writing works
//! again, a gap line has the count. A line that was begun is always finished before another one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::chain::Head;
use super::event::{Cause, Event, Gap, Record, format_time};
use super::queue::Shared;
use super::sink::Sink;

/// Bytes of lines that one write may have.
const BATCH: usize = 256 * 1024;
/// Events that are taken from one queue before the next one.
const FAIR_SHARE: usize = 256;
/// Between two attempts to write after an error.
const RETRY: Duration = Duration::from_secs(1);
/// Between two attempts to write to a pipe that is full and does not block.
const RETRY_FULL_PIPE: Duration = Duration::from_millis(10);
/// Between a write and its fdatasync.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Between two summaries of admissions and refusals that had no line each.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    shared: Arc<Shared>,
    sink: Sink,
    head: Head,
    /// Whole lines that are not written yet.
    lines: Vec<u8>,
    /// The number of these lines.
    count: u64,
    /// Bytes of `lines` that are written.
    written: usize,
    retry_at: Option<Instant>,
    /// Whether the present failure is in the log.
    reported: bool,
    /// Lines written since the last fdatasync, and when it is due.
    unsynced: u64,
    sync_at: Option<Instant>,
    last_summary: (Instant, SystemTime),
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, sink: Sink, head: Head) -> Self {
        Self {
            shared,
            sink,
            head,
            lines: Vec::new(),
            count: 0,
            written: 0,
            retry_at: None,
            reported: false,
            unsynced: 0,
            sync_at: None,
            last_summary: (Instant::now(), SystemTime::now()),
        }
    }

    /// Ends a damaged last line and notes it.
    pub(super) fn note_torn(&mut self, ends_line: bool, gap: Option<Gap>) {
        if !ends_line {
            self.lines.push(b'\n');
        }
        if let Some(gap) = gap {
            self.append(&Record::new(Event::Gap(gap)));
        }
    }

    pub(super) fn append(&mut self, record: &Record) {
        let time = format_time(record.time);
        self.head
            .append(&mut self.lines, &time, record.name(), &record.fields());
        self.count = self.count.saturating_add(1);
    }

    /// Writes what is waiting, once.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write_now(&mut self) -> io::Result<()> {
        while let Some(rest) = self
            .lines
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match self.sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written = self.written.saturating_add(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.shared.metrics.lines.increment(self.count);
        self.unsynced = self.unsynced.saturating_add(self.count);
        self.lines.clear();
        (self.count, self.written) = (0, 0);
        Ok(())
    }

    /// Runs until the log is closed.
    pub(super) fn run(mut self) {
        loop {
            let closing = self.shared.closing.load(Ordering::Acquire);
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            let now = Instant::now();
            let may_write = closing || self.retry_at.is_none_or(|at| at <= now);
            let mut more = false;
            if may_write {
                // What failed before goes first: no further event is taken before it is written.
                self.flush(now);
                if self.lines.is_empty() {
                    more = self.take_events(now, closing);
                    self.flush(now);
                }
            }
            if closing && !more {
                return self.close();
            }
            self.sync_if_due(now);
            if !more || self.retry_at.is_some() {
                self.sleep(now);
            }
        }
    }

    /// Makes lines of the queued events. Returns whether there are more.
    fn take_events(&mut self, now: Instant, closing: bool) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut more = false;
        for queue in shared.queues().iter() {
            let mut taken = 0;
            while taken < FAIR_SHARE && self.lines.len() < BATCH {
                let Ok(record) = queue.events.try_recv() else {
                    break;
                };
                self.append(&record);
                taken += 1;
            }
            more |= taken == FAIR_SHARE || self.lines.len() >= BATCH;
        }
        if !more {
            // The queues are empty: what was lost came after what they held.
            for (cause, lost, since) in shared.take_losses() {
                let gap = Gap::Lost { cause, lost, since };
                self.append(&Record::new(Event::Gap(gap)));
            }
        }
        if closing || now.duration_since(self.last_summary.0) >= SUMMARY_INTERVAL {
            self.summarize(now);
        }
        more
    }

    /// Adds a line for the admissions that had no line each, and one for each reason of such refusals.
    fn summarize(&mut self, now: Instant) {
        let shared = Arc::clone(&self.shared);
        let queues = shared.queues();
        let since = self.last_summary.1;
        let counts = queues.iter().map(|queue| queue.unlisted.take_admissions());
        let count: u64 = counts.sum();
        if count > 0 {
            self.append(&Record::new(Event::Admissions { count, since }));
        }
        for (position, reason) in shared.reason_codes.iter().copied().enumerate() {
            let counts = queues
                .iter()
                .map(|queue| queue.unlisted.take_refusals(position));
            let count: u64 = counts.sum();
            if count > 0 {
                self.append(&Record::new(Event::Refusals {
                    reason,
                    count,
                    since,
                }));
            }
        }
        self.last_summary = (now, SystemTime::now());
    }

    /// Writes, and keeps what cannot be written.
    fn flush(&mut self, now: Instant) {
        match self.write_now() {
            Ok(()) => {
                self.retry_at = None;
                if self.unsynced > 0 {
                    self.sync_at.get_or_insert(now + SYNC_INTERVAL);
                }
                self.recovered();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.retry_at = Some(now + RETRY_FULL_PIPE);
            }
            Err(error) => self.failed(&error, now),
        }
    }

    fn failed(&mut self, error: &io::Error, now: Instant) {
        self.retry_at = Some(now + RETRY);
        self.shared.set_failure(Some(cause_of(error)));
        if !std::mem::replace(&mut self.reported, true) {
            tracing::error!(
                %error,
                required = self.shared.required,
                "the audit log cannot be written, trying again every second"
            );
        }
    }

    fn recovered(&mut self) {
        if self.shared.is_failing() {
            self.shared.set_failure(None);
        }
        if std::mem::replace(&mut self.reported, false) {
            tracing::info!("the audit log is written again");
        }
    }

    fn sync_if_due(&mut self, now: Instant) {
        if self.sync_at.is_none_or(|at| now < at) {
            return;
        }
        self.sync_at = None;
        let unsynced = std::mem::take(&mut self.unsynced);
        if let Err(error) = self.sink.sync() {
            // The kernel reports an error once, and these lines may or may not be on the disk.
            self.shared.lose(Some(cause_of(&error)), unsynced);
            self.failed(&error, now);
        }
    }

    /// Opens the path again, which log rotation has renamed.
    fn reopen(&mut self) {
        let _ = self.write_now();
        let new = match self.sink.reopen(self.head) {
            Ok(Some(new)) => new,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the audit log was not reopened, the open file stays in use");
                return;
            }
        };
        let now = Instant::now();
        if self.unsynced > 0 {
            // Also what was written just now.
            self.sync_at.get_or_insert(now);
        }
        self.sync_if_due(now + SYNC_INTERVAL);
        // A line that is only partly in the old file is written to the new one as a whole.
        let part = self.lines.get(..self.written).unwrap_or_default();
        let whole = part.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |newline| newline.saturating_add(1));
        drop(self.lines.drain(..whole));
        (self.written, self.retry_at) = (0, None);
        self.sink = new;
        self.append(&Record::new(Event::Reopened));
        tracing::info!(lines = self.head.seq, hash = %self.head.hash, "the audit log was reopened");
    }

    /// Writes the last line.
    fn close(mut self) {
        self.append(&Record::new(Event::Stopped));
        let written = self.write_now().and_then(|()| self.sink.sync());
        match written {
            Ok(()) => tracing::info!(
                lines = self.head.seq,
                hash = %self.head.hash,
                "the audit log is closed"
            ),
            Err(error) => tracing::error!(
                %error,
                lines = self.count,
                "the audit log is closed, its last lines could not be written"
            ),
        }
    }

    /// Waits for an event, or for the next thing that is due.
    fn sleep(&self, now: Instant) {
        let summary = self.last_summary.0 + SUMMARY_INTERVAL;
        let due = [self.retry_at, self.sync_at].into_iter().flatten();
        let next = due.fold(summary, Instant::min);
        std::thread::park_timeout(next.saturating_duration_since(now));
    }
}

/// `EFBIG` is the limit of a file's size, and `EDQUOT` a quota.
fn cause_of(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Cause::NoSpace
        }
        _ => Cause::IoError,
    }
}
