//! A msgpack reader for the subset that V1 uses. Borrows from the input.
//!
//! rmp-serde would allocate for lengths that the peer states, and buffer whole values for tagged enums. Here every
//! length is checked against a cap before anything is allocated. The markers are those of rmp.

use std::borrow::Cow;

use rmp::Marker;

use crate::denial::Denial;

pub(super) struct Msgpack<'a> {
    rest: &'a [u8],
}

const TRUNCATED: Denial = Denial::MalformedEvidence("the V1 envelope is cut short");
const TOO_LARGE: Denial = Denial::MalformedEvidence("a field of the V1 envelope is too large");
const UNEXPECTED: Denial =
    Denial::MalformedEvidence("a field of the V1 envelope has an unexpected type");

impl<'a> Msgpack<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The number of pairs of a map.
    pub(super) fn map(&mut self, max: usize) -> Result<usize, Denial> {
        let len = match self.marker()? {
            Marker::FixMap(len) => usize::from(len),
            Marker::Map16 => self.len16()?,
            Marker::Map32 => self.len32()?,
            _ => return Err(UNEXPECTED),
        };
        capped(len, max)
    }

    /// The number of elements of an array.
    pub(super) fn array(&mut self, max: usize) -> Result<usize, Denial> {
        let len = match self.marker()? {
            Marker::FixArray(len) => usize::from(len),
            Marker::Array16 => self.len16()?,
            Marker::Array32 => self.len32()?,
            _ => return Err(UNEXPECTED),
        };
        capped(len, max)
    }

    pub(super) fn text(&mut self, max: usize) -> Result<&'a str, Denial> {
        let marker = self.marker()?;
        self.text_of(marker, max)?.ok_or(UNEXPECTED)
    }

    /// Bytes, as bin (which dstack writes) or as base64 text.
    pub(super) fn bin_or_base64(&mut self, max: usize) -> Result<Cow<'a, [u8]>, Denial> {
        let marker = self.marker()?;
        let len = match marker {
            Marker::Bin8 => usize::from(self.byte()?),
            Marker::Bin16 => self.len16()?,
            Marker::Bin32 => self.len32()?,
            // Four characters for three bytes.
            _ => {
                let text = self
                    .text_of(marker, max.div_ceil(3) * 4)?
                    .ok_or(UNEXPECTED)?;
                return base64_bytes(text).map(Cow::Owned);
            }
        };
        self.take(capped(len, max)?).map(Cow::Borrowed)
    }

    /// An array of integers from 0 to 255, each in its shortest format: how serde writes a `Vec<u8>`.
    pub(super) fn integers(&mut self, max: usize) -> Result<Vec<u8>, Denial> {
        let len = self.array(max)?;
        // An integer has at least one byte.
        if len > self.rest.len() {
            return Err(TRUNCATED);
        }
        let mut bytes = Vec::with_capacity(len);
        let mut rest = self.rest;
        for _ in 0..len {
            (rest, _) = match rest {
                [byte @ 0..=0x7f, rest @ ..] => (rest, bytes.push(*byte)),
                [0xcc, byte @ 0x80..=0xff, rest @ ..] => (rest, bytes.push(*byte)),
                [] | [0xcc] => return Err(TRUNCATED),
                _ => return Err(UNEXPECTED),
            };
        }
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn unsigned(&mut self) -> Result<u64, Denial> {
        Ok(match self.marker()? {
            Marker::FixPos(value) => value.into(),
            Marker::U8 => self.byte()?.into(),
            Marker::U16 => u16::from_be_bytes(self.fixed()?).into(),
            Marker::U32 => u32::from_be_bytes(self.fixed()?).into(),
            Marker::U64 => u64::from_be_bytes(self.fixed()?),
            _ => return Err(UNEXPECTED),
        })
    }

    /// Skips one value of any type. Counts the pending values instead of recursing, so that nesting cannot exhaust
    /// the stack.
    pub(super) fn skip(&mut self) -> Result<(), Denial> {
        let mut pending: usize = 1;
        while pending > 0 {
            pending -= 1;
            let marker = self.marker()?;
            let (bytes, values) = self.extent(marker)?;
            self.take(bytes)?;
            pending = pending.saturating_add(values);
            // A value has at least one byte.
            if pending > self.rest.len() {
                return Err(TRUNCATED);
            }
        }
        Ok(())
    }

    /// The number of bytes and of nested values that follow a marker and its length.
    fn extent(&mut self, marker: Marker) -> Result<(usize, usize), Denial> {
        Ok(match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
                (0, 0)
            }
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 => (2, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixStr(len) => (usize::from(len), 0),
            Marker::Str8 | Marker::Bin8 => (usize::from(self.byte()?), 0),
            Marker::Str16 | Marker::Bin16 => (self.len16()?, 0),
            Marker::Str32 | Marker::Bin32 => (self.len32()?, 0),
            Marker::FixArray(len) => (0, usize::from(len)),
            Marker::Array16 => (0, self.len16()?),
            Marker::Array32 => (0, self.len32()?),
            Marker::FixMap(len) => (0, 2 * usize::from(len)),
            Marker::Map16 => (0, 2 * self.len16()?),
            Marker::Map32 => (0, self.len32()?.saturating_mul(2)),
            // serde writes no extension types.
            Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32
            | Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16
            | Marker::Reserved => return Err(UNEXPECTED),
        })
    }

    fn text_of(&mut self, marker: Marker, max: usize) -> Result<Option<&'a str>, Denial> {
        let len = match marker {
            Marker::FixStr(len) => usize::from(len),
            Marker::Str8 => usize::from(self.byte()?),
            Marker::Str16 => self.len16()?,
            Marker::Str32 => self.len32()?,
            _ => return Ok(None),
        };
        std::str::from_utf8(self.take(capped(len, max)?)?)
            .map(Some)
            .map_err(|_| Denial::MalformedEvidence("a text of the V1 envelope is not UTF-8"))
    }

    fn marker(&mut self) -> Result<Marker, Denial> {
        self.byte().map(Marker::from_u8)
    }

    fn byte(&mut self) -> Result<u8, Denial> {
        let [byte] = self.fixed()?;
        Ok(byte)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Denial> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn len16(&mut self) -> Result<usize, Denial> {
        Ok(u16::from_be_bytes(self.fixed()?).into())
    }

    fn len32(&mut self) -> Result<usize, Denial> {
        usize::try_from(u32::from_be_bytes(self.fixed()?)).map_err(|_| TOO_LARGE)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Denial> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(taken)
    }
}

fn capped(len: usize, max: usize) -> Result<usize, Denial> {
    if len > max { Err(TOO_LARGE) } else { Ok(len) }
}

fn base64_bytes(text: &str) -> Result<Vec<u8>, Denial> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| Denial::MalformedEvidence("an event's payload is not base64"))
}
