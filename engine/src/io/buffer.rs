//! I/O buffers that are passed to the kernel by ownership, and a pool of them for each thread.
//!
//! io_uring may access the memory of a buffer after the future of the operation has been dropped,
//! so monoio's buffer traits are unsafe to implement. Together with a few lines of `stream.rs`, this
//! file has all the unsafe code. Memory is zeroed when it is allocated and remains initialised from
//! then on. Bytes of an earlier use must never become readable: only `start..end` is.
#![allow(unsafe_code)]

use std::cell::RefCell;

use monoio::buf::{IoBuf, IoBufMut};
use zeroize::Zeroize;

/// The maximum of one read into a tiny buffer, in bytes. An idle session waits with such a buffer. A
/// query by primary key and its result have about 100 bytes.
pub(crate) const TINY: usize = 512;
/// The maximum of one read into a small buffer, in bytes: as much as Postgres sends at a time (`PQ_SEND_BUFFER_SIZE`, src/backend/libpq/pqcomm.c).
pub(crate) const SMALL: usize = 8 * 1024;
/// The maximum of one read into a large buffer, in bytes: eight full TLS records.
pub(crate) const LARGE: usize = 128 * 1024;
/// Additional space that reads do not use, so that the bytes of one read still fit after they have been
/// sealed: 22 bytes for each record (RFC 8446, 5.2), and a KeyUpdate or an alert.
const SLACK: usize = 512;
/// The same for a tiny buffer, which holds one record.
const TINY_SLACK: usize = 128;
/// Maximum number of pooled buffers of each size: 160 KiB of tiny ones, 544 KiB of small ones and 1 MiB
/// of large ones.
const POOL_CAPACITY: [usize; 3] = [256, 64, 8];

thread_local! {
    static POOL: RefCell<[Vec<Box<[u8]>>; 3]> =
        const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// The size class of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Size {
    /// [`TINY`] bytes for a read: a short query and its result, or an idle session.
    Tiny,
    /// [`SMALL`] bytes for a read: a query and its result.
    Small,
    /// [`LARGE`] bytes for a read: a stream.
    Large,
}

impl Size {
    /// The maximum of one read, in bytes.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Size::Tiny => TINY,
            Size::Small => SMALL,
            Size::Large => LARGE,
        }
    }

    /// The size of the allocation, in bytes.
    const fn allocation(self) -> usize {
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

    /// The next larger size. For the largest, the same.
    pub(crate) const fn larger(self) -> Self {
        match self {
            Size::Tiny => Size::Small,
            Size::Small | Size::Large => Size::Large,
        }
    }

    /// The next smaller size. For the smallest, the same.
    pub(crate) const fn smaller(self) -> Self {
        match self {
            Size::Large => Size::Small,
            Size::Small | Size::Tiny => Size::Tiny,
        }
    }
}

/// A FIFO of bytes in one allocation: bytes are appended at the end and consumed at the start.
pub(crate) struct Buffer {
    storage: Box<[u8]>,
    start: usize,
    end: usize,
    size: Size,
}

impl Buffer {
    /// Takes an empty buffer from the pool of this thread, or allocates one.
    pub(crate) fn take(size: Size) -> Self {
        let pooled = POOL.with_borrow_mut(|pool| pool.get_mut(size.class()).and_then(Vec::pop));
        let storage = pooled.unwrap_or_else(|| vec![0; size.allocation()].into_boxed_slice());
        Self {
            storage,
            start: 0,
            end: 0,
            size,
        }
    }

    /// A placeholder without memory, for the time while the kernel owns the buffer.
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

    /// Removes `n` bytes from the start, or all if there are fewer.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start.saturating_add(n));
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// The free space at the end that a read may use.
    pub(crate) fn room_mut(&mut self) -> &mut [u8] {
        let end = self.storage.len().min(self.size.bytes());
        self.storage.get_mut(self.end..end).unwrap_or_default()
    }

    /// The free space at the end, including the slack.
    pub(crate) fn spare_mut(&mut self) -> &mut [u8] {
        self.storage.get_mut(self.end..).unwrap_or_default()
    }

    /// Marks `n` bytes of [`Self::spare_mut`] as written.
    pub(crate) fn advance(&mut self, n: usize) {
        self.end = self.storage.len().min(self.end.saturating_add(n));
    }

    /// Appends `bytes` and returns `true`. If they do not fit, appends nothing and returns `false`.
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

    /// How many bytes a read may add.
    pub(crate) fn room(&self) -> usize {
        self.size.bytes().saturating_sub(self.end)
    }

    /// Makes space for a read. Moves the remaining bytes to the start, or into a larger buffer if less
    /// than half of this one would be free.
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
        // It cannot fail: even with its slack, a buffer fits into an empty one of the next size, and
        // the largest one into another of its size.
        let _ = larger.extend(self.filled());
        larger
    }

    /// Overwrites all memory except the bytes that have not been consumed. For buffers that have
    /// contained a password.
    pub(crate) fn wipe_consumed(&mut self) {
        let (consumed, rest) = self.storage.split_at_mut(self.start);
        consumed.zeroize();
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
        // The pool may already have been destroyed because the thread ends.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && let (Some(pooled), Some(capacity)) =
                    (pool.get_mut(class), POOL_CAPACITY.get(class))
                && pooled.len() < *capacity
            {
                pooled.push(storage);
            }
        });
    }
}

// SAFETY: the pointer points into a boxed slice, whose address does not change when the `Buffer` is
// moved. `start..end` is inside it and initialised.
unsafe impl IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.filled().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above. `bytes_total` bytes after `write_ptr` are writable, since `end + room()` never
// exceeds the length of the storage.
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

/// The number of buffers of a size in the pool of this thread.
#[cfg(test)]
pub(crate) fn pooled(size: Size) -> usize {
    POOL.with_borrow(|pool| pool[size.class()].len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_consumed_in_order() {
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
    fn make_room_grows_a_buffer_that_is_half_full() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(buffer.extend(&[7; SMALL / 2 + 1]));
        let buffer = buffer.make_room();
        assert_eq!(buffer.size(), Size::Large);
        assert_eq!(buffer.filled(), &[7; SMALL / 2 + 1]);
    }

    #[test]
    fn a_full_buffer_fits_into_each_larger_size() {
        let mut buffer = Buffer::take(Size::Tiny);
        const FULL: usize = TINY + TINY_SLACK;
        assert!(buffer.extend(&[7; FULL]));
        let buffer = buffer.grown();
        assert_eq!((buffer.size(), buffer.len()), (Size::Small, FULL));
        let buffer = buffer.grown();
        assert_eq!((buffer.size(), buffer.len()), (Size::Large, FULL));
    }

    #[test]
    fn extend_refuses_bytes_that_do_not_fit() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(!buffer.extend(&[0; SMALL + SLACK + 1]));
        assert!(buffer.is_empty());
        assert!(buffer.extend(&[0; SMALL + SLACK]));
        assert_eq!(buffer.room(), 0);
    }

    #[test]
    fn a_pooled_buffer_is_empty() {
        let mut buffer = Buffer::take(Size::Large);
        assert!(buffer.extend(b"secret"));
        let address = buffer.read_ptr();
        drop(buffer);
        let buffer = Buffer::take(Size::Large);
        assert!(buffer.is_empty());
        assert_eq!(buffer.storage.as_ptr(), address);
    }

    #[test]
    fn wipe_consumed_keeps_only_the_unconsumed_bytes() {
        let mut buffer = Buffer::take(Size::Small);
        assert!(buffer.extend(b"secret and more"));
        buffer.consume(7);
        buffer.wipe_consumed();
        assert_eq!(buffer.filled(), b"and more");
        buffer.consume(8);
        buffer.wipe_consumed();
        assert!(buffer.storage.iter().all(|byte| *byte == 0));
    }
}
