//! A bounded FIFO queue from native threads to one Python thread, with a socket: log lines, and servers that a verifier of
//! the application has to decide about.
//!
//! It must never block its writers, and never grow without a limit: a log line too many is counted, a decision too many is
//! refused.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use teesql::{Acceptance, Evidence, Refusal};
use tokio::sync::oneshot;

use crate::wake::WakeSocket;

/// Log lines that wait for Python.
const MAX_LINES: usize = 1024;
/// Servers that wait to be handed to a verifier: as many as a forwarder has sessions by default.
const MAX_DECISIONS: usize = 1024;
/// Entries that are taken at once.
const BATCH: usize = 64;

/// A log line.
pub(crate) struct Line {
    pub(crate) level: u8,
    pub(crate) target: &'static str,
    pub(crate) text: String,
    /// Seconds since the epoch, as Python counts them.
    pub(crate) at: f64,
}

/// What a verifier decides.
pub(crate) type Answer = Result<Acceptance, Refusal>;

/// A server that waits for a decision.
pub(crate) struct Pending {
    pub(crate) number: u64,
    pub(crate) verifier: u64,
    pub(crate) evidence: Evidence,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// What waits for Python.
pub(crate) enum Entry {
    Line(Line),
    /// Boxed: much larger than the other entries.
    Decide(Box<Pending>),
    /// This decision is no longer awaited.
    Abandoned(u64),
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    lines: usize,
    decisions: usize,
    lost_lines: u64,
    is_closed: bool,
}

/// The queue, shared by its writers and its reader.
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    wake: WakeSocket,
}

impl Shared {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            wake: WakeSocket::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a log line, unless too many wait.
    pub(crate) fn push_line(&self, line: Line) {
        let mut queue = self.lock();
        if queue.is_closed {
            return;
        }
        if queue.lines >= MAX_LINES {
            queue.lost_lines += 1;
            return;
        }
        queue.lines += 1;
        queue.entries.push_back(Entry::Line(line));
        drop(queue);
        self.wake.set();
    }

    /// Adds a decision to be made. `false`: too many wait, or the queue is closed.
    pub(crate) fn push_decision(&self, pending: Pending) -> bool {
        let mut queue = self.lock();
        if queue.is_closed || queue.decisions >= MAX_DECISIONS {
            return false;
        }
        queue.decisions += 1;
        queue.entries.push_back(Entry::Decide(Box::new(pending)));
        drop(queue);
        self.wake.set();
        true
    }

    /// Reports that a decision is no longer awaited. One that Python has not taken yet is removed.
    pub(crate) fn abandon(&self, number: u64) {
        let mut queue = self.lock();
        let is_it = |entry: &Entry| matches!(entry, Entry::Decide(it) if it.number == number);
        if let Some(at) = queue.entries.iter().position(is_it) {
            queue.entries.remove(at);
            queue.decisions -= 1;
        } else if !queue.is_closed {
            queue.entries.push_back(Entry::Abandoned(number));
            drop(queue);
            self.wake.set();
        }
    }

    /// Takes up to [`BATCH`] entries, and the number of lines that were lost since the last time.
    pub(crate) fn take(&self) -> (Vec<Entry>, u64) {
        self.wake.clear();
        let mut queue = self.lock();
        let count = queue.entries.len().min(BATCH);
        let entries: Vec<_> = queue.entries.drain(..count).collect();
        let lost = std::mem::take(&mut queue.lost_lines);
        for entry in &entries {
            match entry {
                Entry::Line(_) => queue.lines -= 1,
                Entry::Decide(_) => queue.decisions -= 1,
                Entry::Abandoned(_) => {}
            }
        }
        if !queue.entries.is_empty() {
            self.wake.set();
        }
        (entries, lost)
    }

    /// Refuses further entries, and the decisions that wait. Log lines can still be taken.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        let (kept, dropped): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut queue.entries)
            .into_iter()
            .partition(|entry| matches!(entry, Entry::Line(_)));
        queue.entries = kept;
        queue.decisions = 0;
        drop(queue);
        // Without the lock: dropping a decision wakes the task that waits for it.
        drop(dropped);
        self.wake.set();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// The descriptor that is readable when there is something to take.
    pub(crate) fn fileno(&self) -> RawFd {
        self.wake.fileno()
    }
}
