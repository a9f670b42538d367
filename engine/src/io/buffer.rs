//! I/O buffers that the kernel may hold on to, and the shard's pool of them.
//!
//! io_uring reads and writes memory by address while a future may already be
//! gone, so monoio's buffer traits are unsafe to implement. Everything but three
//! lines of `net.rs` builds on the safe surface below. The memory is zeroed once,
//! when it is allocated, and stays initialised for good; stale bytes of an earlier
//! user are never readable, since only `start..end` is.
#![allow(unsafe_code)]

use std::cell::RefCell;

use monoio::buf::{IoBuf, IoBufMut};
use zeroize::Zeroize;

/// Most bytes that one read takes into a tiny buffer, which is what an idle
/// session waits with: a query by primary key and its answer have about 100.
pub(crate) const TINY: usize = 512;
/// Most bytes that one read takes into a small buffer: what Postgres sends at
/// a time (`PQ_SEND_BUFFER_SIZE`, src/backend/libpq/pqcomm.c).
pub(crate) const SMALL: usize = 8 * 1024;
/// Most bytes that one read takes into a large buffer: eight full TLS records.
pub(crate) const LARGE: usize = 128 * 1024;
/// Room past what a read may take, so that the same bytes still fit once they
/// are sealed: 22 bytes a record (RFC 8446, 5.2) and a KeyUpdate or an alert.
const SLACK: usize = 512;
/// The same for one record.
const TINY_SLACK: usize = 128;
/// Buffers of a size that an idle shard keeps: 1 MiB of large ones.
const KEEP: [usize; 3] = [256, 64, 8];

thread_local! {
    static POOL: RefCell<[Vec<Box<[u8]>>; 3]> =
        const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// How much a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Size {
    /// [`TINY`] bytes a read: a short query and its answer, or nothing for now.
    Tiny,
    /// [`SMALL`] bytes a read: a query and its answer.
    Small,
    /// [`LARGE`] bytes a read: a stream.
    Large,
}

impl Size {
    /// Most bytes that one read takes.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Size::Tiny => TINY,
            Size::Small => SMALL,
            Size::Large => LARGE,
        }
    }

    /// Bytes of its allocation.
    const fn storage(self) -> usize {
        match self {
            Size::Tiny => TINY + TINY_SLACK,
            Size::Small | Size::Large => self.bytes() + SLACK,
        }
    }

    const fn class(self) -> usize {
        match self {
            Size::Tiny => 0,
            Size::Small => 1,
            Size::Large => 2,
        }
    }

    /// The next one up; the largest is its own.
    pub(crate) const fn larger(self) -> Self {
        match self {
            Size::Tiny => Size::Small,
            Size::Small | Size::Large => Size::Large,
        }
    }

    /// The next one down; the smallest is its own.
    pub(crate) const fn smaller(self) -> Self {
        match self {
            Size::Large => Size::Small,
            Size::Small | Size::Tiny => Size::Tiny,
        }
    }
}

/// A byte queue in one allocation: filled at the back, consumed at the front.
pub(crate) struct Buffer {
    storage: Box<[u8]>,
    start: usize,
    end: usize,
    size: Size,
}

impl Buffer {
    /// An empty buffer from this shard's pool.
    pub(crate) fn take(size: Size) -> Self {
        let pooled = POOL.with_borrow_mut(|pool| pool.get_mut(size.class()).and_then(Vec::pop));
        let storage = pooled.unwrap_or_else(|| vec![0; size.storage()].into_boxed_slice());
        Self {
            storage,
            start: 0,
            end: 0,
            size,
        }
    }

    /// No buffer at all: what is left in place while the kernel has the other.
    pub(crate) fn none() -> Self {
        Self {
            storage: Box::default(),
            start: 0,
            end: 0,
            size: Size::Small,
        }
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn filled(&self) -> &[u8] {
        self.storage.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        self.storage
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }

    /// Drops `n` bytes at the front; all of them where there are fewer.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start.saturating_add(n));
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// The free room at the back that a read may use.
    pub(crate) fn room_mut(&mut self) -> &mut [u8] {
        let end = self.storage.len().min(self.size.bytes());
        self.storage.get_mut(self.end..end).unwrap_or_default()
    }

    /// The free room at the back, slack included.
    pub(crate) fn spare_mut(&mut self) -> &mut [u8] {
        self.storage.get_mut(self.end..).unwrap_or_default()
    }

    /// Declares `n` bytes of [`Self::spare_mut`] written.
    pub(crate) fn advance(&mut self, n: usize) {
        self.end = self.storage.len().min(self.end.saturating_add(n));
    }

    /// Appends all of `bytes`, or nothing and `false` where they do not fit.
    #[must_use]
    pub(crate) fn extend(&mut self, bytes: &[u8]) -> bool {
        match self.spare_mut().get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.end += bytes.len();
                true
            }
            None => false,
        }
    }

    /// Bytes that a read may still add.
    pub(crate) fn room(&self) -> usize {
        self.size.bytes().saturating_sub(self.end)
    }

    /// Makes room at the back: moves what is left to the front and, where a
    /// read would still find less than half a buffer, into a larger one.
    #[must_use]
    pub(crate) fn make_room(mut self) -> Self {
        if self.start > 0 {
            self.storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.size != Size::Large && self.room() < self.size.bytes() / 2 {
            return self.grown();
        }
        self
    }

    /// The same bytes in a larger buffer.
    #[must_use]
    pub(crate) fn grown(self) -> Self {
        let mut larger = Self::take(self.size.larger());
        // A buffer with its slack fits into an empty one of the next size, and
        // the largest into itself.
        let _ = larger.extend(self.filled());
        larger
    }

    /// Overwrites all but what is still to be used: for buffers that have held
    /// a password.
    pub(crate) fn wipe_used(&mut self) {
        let (used, rest) = self.storage.split_at_mut(self.start);
        used.zeroize();
        if let Some(free) = rest.get_mut(self.end - self.start..) {
            free.zeroize();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let storage = std::mem::take(&mut self.storage);
        if storage.is_empty() {
            return;
        }
        let class = self.size.class();
        // The thread may be on its way out, with the pool already gone.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && let (Some(kept), Some(most)) = (pool.get_mut(class), KEEP.get(class))
                && kept.len() < *most
            {
                kept.push(storage);
            }
        });
    }
}

// SAFETY: the pointer is into a boxed slice, which stays where it is when the
// `Buffer` moves; `start..end` is inside it and initialised.
unsafe impl IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.filled().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; `write_ptr` has `bytes_total` writable bytes behind it,
// since `end + room()` never passes the end of the storage.
unsafe impl IoBufMut for Buffer {
    fn write_ptr(&mut self) -> *mut u8 {
        self.spare_mut().as_mut_ptr()
    }

    fn bytes_total(&mut self) -> usize {
        self.room()
    }

    unsafe fn set_init(&mut self, n: usize) {
        self.advance(n);
    }
}

/// Buffers of a size in this thread's pool.
#[cfg(test)]
pub(crate) fn pooled(size: Size) -> usize {
    POOL.with_borrow(|pool| pool[size.class()].len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_of_bytes() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(buffer.extend(b"hello world"));
        buffer.consume(6);
        assert_eq!(buffer.filled(), b"world");
        buffer = buffer.make_room();
        assert_eq!(buffer.filled(), b"world");
        assert_eq!(buffer.room(), SMALL - 5);
        buffer.consume(usize::MAX);
        assert!(buffer.is_empty());
        assert_eq!(buffer.room(), SMALL);
    }

    #[test]
    fn grows_when_a_read_would_find_little_room() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(buffer.extend(&[7; SMALL / 2 + 1]));
        let buffer = buffer.make_room();
        assert_eq!(buffer.size(), Size::Large);
        assert_eq!(buffer.filled(), &[7; SMALL / 2 + 1]);
    }

    #[test]
    fn what_a_tiny_one_holds_fits_all_the_way_up() {
        let mut buffer = Buffer::take(Size::Tiny);
        const MOST: usize = TINY + TINY_SLACK;
        assert!(buffer.extend(&[7; MOST]));
        let buffer = buffer.grown();
        assert_eq!((buffer.size(), buffer.len()), (Size::Small, MOST));
        let buffer = buffer.grown();
        assert_eq!((buffer.size(), buffer.len()), (Size::Large, MOST));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(!buffer.extend(&[0; SMALL + SLACK + 1]));
        assert!(buffer.is_empty());
        assert!(buffer.extend(&[0; SMALL + SLACK]));
        assert_eq!(buffer.room(), 0);
    }

    #[test]
    fn the_pool_hands_back_storage_without_its_bytes() {
        let mut buffer = Buffer::take(Size::Large);
        assert!(buffer.extend(b"secret"));
        let address = buffer.read_ptr();
        drop(buffer);
        let buffer = Buffer::take(Size::Large);
        assert!(buffer.is_empty());
        assert_eq!(buffer.storage.as_ptr(), address);
    }

    #[test]
    fn wiping_leaves_only_what_is_to_be_used() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(buffer.extend(b"secret and more"));
        buffer.consume(7);
        buffer.wipe_used();
        assert_eq!(buffer.filled(), b"and more");
        buffer.consume(8);
        buffer.wipe_used();
        assert!(buffer.storage.iter().all(|byte| *byte == 0));
    }
}
