//! Message framing: parses bytes into (tag, body) and writes messages.
//!
//! It exists so that no other module does length arithmetic on peer data. It must never interpret a
//! body, and never return one that is incomplete or longer than the caller's cap.

use std::fmt;

/// Length of a message header in bytes: the tag and the length word.
pub const HEADER_LEN: usize = 5;

/// Size of the length word in bytes. The length word counts itself but not the tag.
const LENGTH_WORD: usize = 4;

/// A complete message with a tag, borrowed from the input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    tag: u8,
    body: &'a [u8],
}

/// An invalid length word. Reported as soon as its four bytes have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length word is below 4, although it counts itself.
    #[error("message {tag:#04x} has the invalid length {length}")]
    TooShort {
        /// The message's tag.
        tag: u8,
        /// The length word, in bytes.
        length: u32,
    },
    /// The length word is above the cap for this state of the protocol.
    #[error("message {tag:#04x} of {length} bytes is too long")]
    TooLong {
        /// The message's tag.
        tag: u8,
        /// The length word, in bytes.
        length: u32,
    },
}

impl<'a> Frame<'a> {
    /// Reads the message at the start of `bytes`; `None` until it is complete.
    ///
    /// `cap` is the largest allowed length word in bytes. It counts the word itself and the body,
    /// but not the tag.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the first five bytes hold an invalid length.
    pub fn read(bytes: &'a [u8], cap: usize) -> Result<Option<Self>, FrameError> {
        let mut cursor = Cursor::new(bytes);
        let (Some(tag), Some(length)) = (cursor.u8(), cursor.u32()) else {
            return Ok(None);
        };
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > cap {
            return Err(FrameError::TooLong { tag, length });
        }
        let Some(body_len) = size.checked_sub(LENGTH_WORD) else {
            return Err(FrameError::TooShort { tag, length });
        };
        Ok(cursor.take(body_len).map(|body| Self { tag, body }))
    }

    /// The message's type byte.
    #[must_use]
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// The bytes after the length word.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Length of the whole message on the wire in bytes: tag, length word and body.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER_LEN.saturating_add(self.body.len())
    }
}

/// Shows the tag and the size; a body may carry a password.
impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("tag", &char::from(self.tag))
            .field("body_len", &self.body.len())
            .finish()
    }
}

/// A bounds-checked reader: it moves forward only, and never past the end.
pub(crate) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*word))
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads a string up to its NUL, and skips the NUL. `None` if there is no NUL.
    pub(crate) fn c_str(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(len)?;
        self.u8()?;
        Some(text)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a message: its tag, its length word and the bytes that `body` writes.
pub(crate) fn write_tagged(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    write_untagged(out, body);
}

/// Appends a start-up packet: a length word and the bytes that `body` writes.
pub(crate) fn write_untagged(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_WORD]);
    body(out);
    // Never saturates: all output is bounded by the caps on input, far below 2^32.
    let length = u32::try_from(out.len().saturating_sub(start)).unwrap_or(u32::MAX);
    for (slot, byte) in out.iter_mut().skip(start).zip(length.to_be_bytes()) {
        *slot = byte;
    }
}

/// Appends a string and its NUL. `text` must not contain a NUL.
pub(crate) fn write_c_str(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}
