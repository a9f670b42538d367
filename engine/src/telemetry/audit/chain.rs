//! The hash chain of the audit log: each line has the SHA-256 of the line before it.
//!
//! A line that is changed, removed, inserted or moved breaks the chain at a place that
//! [`Verification`] names. Bytes in, links out: this file must not do I/O.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Bytes of a line, without its end. The longest line that is written has about 2 KiB.
pub(crate) const MAX_LINE: usize = 64 * 1024;
/// The event of a line about lines that are missing or damaged.
pub(crate) const GAP: &str = "gap";
/// The cause of a gap after a line that was not written completely.
pub(crate) const TORN_LINE: &str = "torn_line";

/// The SHA-256 of a line, without its line end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineHash([u8; 32]);

impl LineHash {
    /// What the first line has instead of a hash.
    pub(crate) const NONE: Self = Self([0; 32]);

    pub(crate) fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for LineHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map_err(|_| "expected 64 hex digits".to_owned())?;
        Ok(Self(hash))
    }
}

/// The last line of a chain: its number and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) hash: LineHash,
}

impl Head {
    /// The head of a chain without a line.
    pub(crate) const EMPTY: Self = Self {
        seq: 0,
        hash: LineHash::NONE,
    };

    /// Appends a line to `out` and makes it the head.
    pub(crate) fn append(&mut self, out: &mut Vec<u8>, time: &str, event: &str, fields: &Fields) {
        let start = out.len();
        let seq = self.seq.saturating_add(1);
        let prefix = format!(
            r#"{{"seq":{seq},"prev":"{}","time":"{time}","event":"{event}""#,
            self.hash
        );
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(&fields.0);
        out.push(b'}');
        let hash = LineHash::of(out.get(start..).unwrap_or_default());
        out.push(b'\n');
        *self = Self { seq, hash };
    }
}

/// The fields of a line after the first four, encoded.
#[derive(Default)]
pub(crate) struct Fields(Vec<u8>);

impl Fields {
    /// Adds a field. `name` needs no escape; the value is escaped.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        self.0
            .extend_from_slice(value.into().to_string().as_bytes());
    }
}

/// A line of the log, parsed.
struct Line {
    seq: u64,
    prev: LineHash,
    time: String,
    event: String,
    value: Value,
}

/// Why a line does not continue the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadLine {
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("no JSON object with seq, prev, time and event")]
    Malformed,
    #[error("its number is {found}, not {expected}: lines are missing, repeated or moved")]
    Number { expected: u64, found: u64 },
    #[error("it does not have the hash of the line before it, one of the two was changed")]
    Hash,
    #[error("a chain begins here, the lines before it belong to another one")]
    SecondChain,
    #[error("it ends without a line end: it was not written completely, or the file was cut")]
    Unfinished,
    #[error("it does not repeat the unfinished line at the end of the file before")]
    Torn,
}

impl Line {
    fn parse(line: &[u8]) -> Result<Self, BadLine> {
        if line.len() > MAX_LINE {
            return Err(BadLine::TooLong);
        }
        let value: Value = serde_json::from_slice(line).map_err(|_| BadLine::Malformed)?;
        let text = |name| value.get(name).and_then(Value::as_str);
        let parsed = (|| {
            Some((
                value.get("seq")?.as_u64()?,
                text("prev")?.parse().ok()?,
                text("time")?.to_owned(),
                text("event")?.to_owned(),
            ))
        })();
        let (seq, prev, time, event): (_, _, String, String) = parsed.ok_or(BadLine::Malformed)?;
        // Times are printed: a line of another origin may hold escape sequences of a terminal.
        if humantime::parse_rfc3339(&time).is_err() {
            return Err(BadLine::Malformed);
        }
        Ok(Self {
            seq,
            prev,
            time,
            event,
            value,
        })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.value.get(name)?.as_str()
    }

    /// Whether this is the line that notes the damaged bytes `torn` before it.
    fn notes(&self, torn: &[u8]) -> bool {
        self.event == GAP
            && self.text("cause") == Some(TORN_LINE)
            && self.text("torn_sha256") == Some(LineHash::of(torn).to_string().as_str())
    }
}

/// The end of a file that is to be continued.
pub(crate) struct Tail {
    pub(crate) head: Head,
    /// Bytes after the last whole line, which were not written completely.
    pub(crate) torn: Option<Vec<u8>>,
    /// Whether the file ends with a line end.
    pub(crate) ends_line: bool,
}

impl Tail {
    /// Finds the last whole line in `bytes`, the end of a file. `whole_file` says that nothing
    /// precedes them. `None` if this is not the end of an audit log.
    pub(crate) fn find(bytes: &[u8], whole_file: bool) -> Option<Self> {
        let ends_line = bytes.is_empty() || bytes.ends_with(b"\n");
        let last = bytes
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        if let Ok(parsed) = Line::parse(last) {
            // Only its line end is missing.
            let (seq, hash) = (parsed.seq, LineHash::of(last));
            return Some(Self {
                head: Head { seq, hash },
                torn: None,
                ends_line,
            });
        }
        let mut end = bytes.len();
        while let Some(before) = bytes.get(..end) {
            let Some(newline) = before.iter().rposition(|byte| *byte == b'\n') else {
                break;
            };
            let line = bytes.get(..newline)?.rsplit(|byte| *byte == b'\n').next()?;
            if let Ok(parsed) = Line::parse(line) {
                let head = Head {
                    seq: parsed.seq,
                    hash: LineHash::of(line),
                };
                let torn = torn(bytes.get(newline.saturating_add(1)..)?);
                return Some(Self {
                    head,
                    torn,
                    ends_line,
                });
            }
            end = newline;
        }
        // Only the first line of a log may be torn without a line before it.
        let is_ours = bytes.is_empty() || bytes.starts_with(br#"{"seq":1,"#) || is_prefix(bytes);
        (whole_file && is_ours).then(|| Self {
            head: Head::EMPTY,
            torn: torn(bytes),
            ends_line,
        })
    }
}

/// Whether these few bytes can be the beginning of a first line.
fn is_prefix(bytes: &[u8]) -> bool {
    br#"{"seq":1,"#.starts_with(bytes)
}

/// The damaged bytes, without a line end after them.
fn torn(rest: &[u8]) -> Option<Vec<u8>> {
    let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
    (!rest.is_empty()).then(|| rest.to_vec())
}

/// What a verified chain contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) lines: u64,
    /// Number and time of the first line.
    pub(crate) first: Option<(u64, String)>,
    /// Number and time of the last line.
    pub(crate) last: Option<(u64, String)>,
    /// Gaps, and the lines that were lost in them.
    pub(crate) gaps: u64,
    pub(crate) lost: u64,
    /// Lines that were not written completely, each noted by the line after it.
    pub(crate) torn: u64,
    /// Whether the wanted hash is that of a line.
    pub(crate) has_wanted: bool,
}

/// Verifies the lines of one or several files in order.
pub(crate) struct Verification {
    head: Option<Head>,
    wanted: Option<LineHash>,
    /// Bytes that are no line, and the first fault in them, until a line notes them.
    damaged: Option<(Vec<u8>, BadLine)>,
    /// The unfinished line at the end of the file before.
    carried: Option<Vec<u8>>,
    summary: Summary,
}

impl Verification {
    /// `wanted` is the hash of a line that must be there.
    pub(crate) fn new(wanted: Option<LineHash>) -> Self {
        Self {
            head: None,
            wanted,
            damaged: None,
            carried: None,
            summary: Summary::default(),
        }
    }

    /// Verifies the next line, without its line end.
    ///
    /// # Errors
    /// It does not continue the chain. If it cannot be read at all, the error is reported later:
    /// by the line that should have noted the damage, or at the end of the file.
    pub(crate) fn line(&mut self, line: &[u8]) -> Result<(), BadLine> {
        if let Some(fragment) = self.carried.take()
            && !line.starts_with(&fragment)
        {
            return Err(BadLine::Torn);
        }
        let parsed = match Line::parse(line) {
            Ok(parsed) => parsed,
            Err(fault) => return self.damage(line, fault),
        };
        if let Some((torn, fault)) = self.damaged.take() {
            if !parsed.notes(&torn) {
                return Err(fault);
            }
            self.summary.torn = self.summary.torn.saturating_add(1);
        }
        match self.head {
            // The first file may be the continuation of one that is not verified.
            None if parsed.seq == 1 && parsed.prev != LineHash::NONE => return Err(BadLine::Hash),
            None => {}
            Some(_) if parsed.seq == 1 => return Err(BadLine::SecondChain),
            Some(head) => {
                let expected = head.seq.saturating_add(1);
                if parsed.seq != expected {
                    let found = parsed.seq;
                    return Err(BadLine::Number { expected, found });
                }
                if parsed.prev != head.hash {
                    return Err(BadLine::Hash);
                }
            }
        }
        self.accept(line, parsed);
        Ok(())
    }

    fn accept(&mut self, line: &[u8], parsed: Line) {
        let hash = LineHash::of(line);
        let summary = &mut self.summary;
        summary.lines = summary.lines.saturating_add(1);
        if parsed.event == GAP {
            let lost = parsed.value.get("lost").and_then(Value::as_u64);
            summary.gaps = summary.gaps.saturating_add(1);
            summary.lost = summary.lost.saturating_add(lost.unwrap_or(0));
        }
        summary.has_wanted |= self.wanted == Some(hash);
        let place = (parsed.seq, parsed.time);
        summary.first.get_or_insert_with(|| place.clone());
        summary.last = Some(place);
        self.head = Some(Head {
            seq: parsed.seq,
            hash,
        });
    }

    /// Keeps bytes that are no line until the next one, which may note them.
    fn damage(&mut self, line: &[u8], fault: BadLine) -> Result<(), BadLine> {
        let (bytes, _) = self.damaged.get_or_insert_with(|| (Vec::new(), fault));
        if !bytes.is_empty() {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line);
        if bytes.len() <= MAX_LINE {
            return Ok(());
        }
        self.damage_unnoted()
    }

    /// Whether lines cannot be read, and no line has noted them yet.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.is_some()
    }

    fn damage_unnoted(&mut self) -> Result<(), BadLine> {
        self.damaged.take().map_or(Ok(()), |(_, fault)| Err(fault))
    }

    /// Ends a file, of which `rest` follows the last line end. Another file follows.
    ///
    /// # Errors
    /// Damaged bytes that no line notes.
    pub(crate) fn next_file(&mut self, rest: &[u8]) -> Result<(), BadLine> {
        self.damage_unnoted()?;
        self.carried = (!rest.is_empty()).then(|| rest.to_vec());
        Ok(())
    }

    /// Ends the last file.
    ///
    /// # Errors
    /// As [`Self::next_file`], or its last line is unfinished.
    pub(crate) fn finish(mut self, rest: &[u8]) -> Result<(Summary, Option<Head>), BadLine> {
        self.damage_unnoted()?;
        if !rest.is_empty() {
            return Err(BadLine::Unfinished);
        }
        Ok((self.summary, self.head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-29T09:00:00.000000Z";

    /// Three lines, the second of them with text that needs escapes.
    fn three_lines() -> Vec<u8> {
        let (mut out, mut head) = (Vec::new(), Head::EMPTY);
        for database in ["orders", "a\"b\\\n\u{7f}é", "x"] {
            let mut fields = Fields::default();
            fields.set("database", database);
            fields.set("peer", None::<String>);
            head.append(&mut out, TIME, "role_grant", &fields);
        }
        assert_eq!(head.seq, 3);
        out
    }

    fn verify(files: &[&[u8]]) -> Result<Summary, BadLine> {
        let mut verification = Verification::new(None);
        let mut last: &[u8] = &[];
        for (number, file) in files.iter().enumerate() {
            if number > 0 {
                verification.next_file(last)?;
            }
            let end = file
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in file[..end].split_inclusive(|byte| *byte == b'\n') {
                verification.line(line.strip_suffix(b"\n").unwrap())?;
            }
            last = &file[end..];
        }
        verification.finish(last).map(|(summary, _)| summary)
    }

    #[test]
    fn a_chain_can_be_verified_and_read() {
        let text = three_lines();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 3);
        let summary = verify(&[&text]).unwrap();
        assert_eq!(summary.lines, 3);
        assert_eq!(summary.last, Some((3, TIME.to_owned())));
        let second = text.split(|byte| *byte == b'\n').nth(1).unwrap();
        let second: Value = serde_json::from_slice(second).unwrap();
        assert_eq!(second["database"], "a\"b\\\n\u{7f}é");
        assert_eq!(second["peer"], Value::Null);
    }

    #[test]
    fn the_chain_may_be_cut_into_files_after_any_line() {
        let text = three_lines();
        for at in (0..=text.len()).filter(|at| *at == 0 || text[at - 1] == b'\n') {
            assert_eq!(
                verify(&[&text[..at], &text[at..]]).unwrap().lines,
                3,
                "{at}"
            );
        }
    }

    /// Every single changed byte is noticed, except in the last line, whose hash nothing has yet.
    #[test]
    fn every_changed_byte_before_the_last_line_is_found() {
        let text = three_lines();
        let last = text[..text.len() - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .unwrap()
            + 1;
        for at in 0..last {
            let mut changed = text.clone();
            changed[at] ^= 0x01;
            assert!(verify(&[&changed]).is_err(), "byte {at}");
        }
    }

    #[test]
    fn removed_repeated_and_moved_lines_are_found() {
        let text = three_lines();
        let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let number = |expected, found| Err(BadLine::Number { expected, found });
        assert_eq!(verify(&[lines[0], lines[2]]), number(2, 3));
        assert_eq!(verify(&[lines[0], lines[1], lines[1]]), number(3, 2));
        assert_eq!(verify(&[lines[1], lines[0]]), Err(BadLine::SecondChain));
        assert_eq!(verify(&[&text, lines[0]]), Err(BadLine::SecondChain));
        // A line that was written anew, with the right number.
        let (mut out, mut head) = (
            Vec::new(),
            Head {
                seq: 1,
                hash: LineHash::NONE,
            },
        );
        head.append(&mut out, TIME, "admission", &Fields::default());
        assert_eq!(verify(&[lines[0], &out]), Err(BadLine::Hash));
        assert_eq!(verify(&[&text[..text.len() - 1]]), Err(BadLine::Unfinished));
    }

    #[test]
    fn a_file_can_be_continued_after_a_torn_line() {
        let text = three_lines();
        let after_second = {
            let last = &text[..text.len() - 1];
            last.iter().rposition(|byte| *byte == b'\n').unwrap() + 1
        };
        for end in after_second..text.len() {
            let mut file = text[..end].to_vec();
            let tail = Tail::find(&file, true).unwrap();
            let is_whole = end == text.len() - 1;
            assert_eq!(tail.head.seq, if is_whole { 3 } else { 2 }, "{end}");
            let mut head = tail.head;
            let mut fields = Fields::default();
            fields.set("cause", TORN_LINE);
            if let Some(torn) = &tail.torn {
                assert_eq!(torn, &text[after_second..end]);
                fields.set("torn_sha256", LineHash::of(torn).to_string());
            }
            if !tail.ends_line {
                file.push(b'\n');
            }
            head.append(&mut file, TIME, GAP, &fields);
            let summary = verify(&[&file]).unwrap();
            assert_eq!(summary.torn, u64::from(tail.torn.is_some()), "{end}");
            // The damaged bytes must not be changed afterwards.
            if tail.torn.is_some() {
                file[after_second] ^= 1;
                assert_eq!(verify(&[&file]), Err(BadLine::Malformed));
            }
        }
        assert_eq!(Tail::find(&text, true).unwrap().head.seq, 3);
    }

    #[test]
    fn the_first_line_may_be_torn_but_another_file_is_not_a_log() {
        let text = three_lines();
        for end in 0..60 {
            let tail = Tail::find(&text[..end], true).unwrap();
            assert_eq!(tail.head, Head::EMPTY);
            assert_eq!(tail.torn.unwrap_or_default(), text[..end]);
        }
        assert!(Tail::find(b"root:x:0:0:root:/root:/bin/sh\n", true).is_none());
        assert!(Tail::find(b"root", true).is_none());
        assert!(Tail::find(&text[..50], false).is_none());
    }

    #[test]
    fn a_line_that_is_repeated_in_the_next_file_may_be_torn_in_this_one() {
        let text = three_lines();
        let cut = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(verify(&[&text[..cut + 30], &text[cut..]]).unwrap().lines, 3);
        let mut other = text[..cut + 30].to_vec();
        other[cut + 3] ^= 1;
        assert_eq!(verify(&[&other, &text[cut..]]), Err(BadLine::Torn));
    }
}
