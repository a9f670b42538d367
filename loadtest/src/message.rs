//! Builds frontend messages, and scans the backend's byte stream for the few messages that a load
//! has to recognize: ReadyForQuery, ErrorResponse, CopyInResponse, CopyData and DataRow.
//! [PostgreSQL 18 documentation, "Message Formats"]

/// SSLRequest.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Terminate.
pub const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];
/// CopyDone.
pub const COPY_DONE: [u8; 5] = [b'c', 0, 0, 0, 4];
/// Sync.
pub const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];

/// Length of a message's tag and length word.
const HEADER: usize = 5;
/// Maximum bytes of an ErrorResponse that are kept for display.
const ERROR_KEPT: usize = 512;

/// Builds a StartupMessage of protocol 3.0.
#[must_use]
pub fn startup(role: &str, database: &str) -> Vec<u8> {
    let mut packet = vec![0, 0, 0, 0, 0, 3, 0, 0];
    for (name, value) in [("user", role), ("database", database)] {
        text(&mut packet, name);
        text(&mut packet, value);
    }
    packet.push(0);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    if let Some(head) = packet.first_chunk_mut() {
        *head = length.to_be_bytes();
    }
    packet
}

pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

/// Appends a message: its tag, its length, and the body that `body` appends.
pub fn tagged(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(word) = out.get_mut(at..at + 4) {
        word.copy_from_slice(&length.to_be_bytes());
    }
}

/// Builds a Query message.
#[must_use]
pub fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    tagged(&mut out, b'Q', |out| text(out, sql));
    out
}

/// Appends Parse of `sql`, with one parameter of type int4, as statement `name`.
pub fn parse(out: &mut Vec<u8>, name: &str, sql: &str) {
    const INT4: u32 = 23;
    tagged(out, b'P', |out| {
        text(out, name);
        text(out, sql);
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(&INT4.to_be_bytes());
    });
}

/// Appends Bind of statement `name` with one parameter in text format, Describe of the portal, and
/// Execute: what libpq sends for a prepared statement, except Sync.
pub fn execute(out: &mut Vec<u8>, name: &str, parameter: &str) {
    tagged(out, b'B', |out| {
        text(out, "");
        text(out, name);
        out.extend_from_slice(&[0, 0, 0, 1]);
        let length = u32::try_from(parameter.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(parameter.as_bytes());
        out.extend_from_slice(&[0, 0]);
    });
    tagged(out, b'D', |out| text(out, "P"));
    tagged(out, b'E', |out| out.extend_from_slice(&[0; 5]));
}

/// What [`Scanner::feed`] reports.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A ReadyForQuery message.
    Ready,
    /// Part of a CopyData message's content, in order.
    CopyData(&'a [u8]),
    /// A CopyInResponse message: rows may be sent.
    CopyIn,
    /// Part of a DataRow message's content, in order.
    Row(&'a [u8]),
}

/// Incremental scanner over the backend's messages, for reads of any size. It never buffers a
/// message, except up to 512 bytes of an ErrorResponse.
#[derive(Debug, Default)]
pub struct Scanner {
    header: [u8; HEADER],
    filled: usize,
    left: usize,
    error: Vec<u8>,
}

impl Scanner {
    /// Scans the next bytes and calls `on_event` for each event in them.
    ///
    /// # Errors
    /// An invalid length word, or an ErrorResponse with its severity, code and text. The scanner
    /// must not be used afterwards.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.filled < HEADER {
                bytes = self.header_bytes(bytes)?;
                if self.filled < HEADER {
                    return Ok(());
                }
            }
            let (body, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= body.len();
            self.body_bytes(body, &mut on_event)?;
            bytes = rest;
            if self.left == 0 {
                self.filled = 0;
            }
        }
        Ok(())
    }

    fn header_bytes<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], String> {
        let (mine, rest) = bytes.split_at(bytes.len().min(HEADER - self.filled));
        for (slot, byte) in self.header.iter_mut().skip(self.filled).zip(mine) {
            *slot = *byte;
        }
        self.filled += mine.len();
        if self.filled == HEADER {
            let [_, length @ ..] = self.header;
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            let body = length.checked_sub(4).filter(|body| *body < (1 << 30));
            self.left = body.ok_or("a message has an invalid length")?;
        }
        Ok(rest)
    }

    fn body_bytes(
        &mut self,
        body: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), String> {
        let [tag, ..] = self.header;
        match tag {
            b'd' => on_event(Event::CopyData(body)),
            b'D' => on_event(Event::Row(body)),
            b'Z' if self.left == 0 => on_event(Event::Ready),
            b'G' if self.left == 0 => on_event(Event::CopyIn),
            b'E' => return self.error_response(body),
            _ => {}
        }
        Ok(())
    }

    fn error_response(&mut self, body: &[u8]) -> Result<(), String> {
        let room = ERROR_KEPT.saturating_sub(self.error.len());
        self.error.extend(body.iter().take(room));
        match self.left {
            0 => Err(error_summary(&self.error)),
            _ => Ok(()),
        }
    }
}

/// Severity, code and text from the fields of an ErrorResponse.
fn error_summary(fields: &[u8]) -> String {
    let fields = fields.split(|byte| *byte == 0);
    let wanted = fields.filter_map(|field| match field.split_first()? {
        (b'V' | b'C' | b'M', text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    });
    wanted.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transcript() -> Vec<u8> {
        let mut bytes = Vec::new();
        tagged(&mut bytes, b'T', |out| out.extend_from_slice(&[0; 30]));
        tagged(&mut bytes, b'D', |out| out.extend_from_slice(b"row"));
        tagged(&mut bytes, b'd', |out| out.extend_from_slice(b"copied\n"));
        tagged(&mut bytes, b'2', |_| {});
        tagged(&mut bytes, b'C', |out| text(out, "SELECT 1"));
        tagged(&mut bytes, b'Z', |out| out.push(b'I'));
        tagged(&mut bytes, b'Z', |out| out.push(b'I'));
        bytes
    }

    proptest! {
        #[test]
        fn scanner_output_does_not_depend_on_read_sizes(cuts in proptest::collection::vec(1_usize..40, 1..60)) {
            let bytes = transcript();
            let (mut ready, mut copied, mut row) = (0, Vec::new(), Vec::new());
            let mut scanner = Scanner::default();
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                scanner.feed(now, |event| match event {
                    Event::Ready => ready += 1,
                    Event::CopyData(bytes) => copied.extend_from_slice(bytes),
                    Event::Row(bytes) => row.extend_from_slice(bytes),
                    Event::CopyIn => {}
                }).unwrap();
                rest = later;
            }
            prop_assert_eq!(ready, 2);
            prop_assert_eq!(copied, b"copied\n");
            prop_assert_eq!(row, b"row");
        }
    }

    #[test]
    fn an_error_response_is_returned_with_its_text() {
        let mut bytes = Vec::new();
        tagged(&mut bytes, b'E', |out| {
            for field in ["SFATAL", "VFATAL", "C57P01", "Mterminating", ""] {
                text(out, field);
            }
        });
        for cut in 0..bytes.len() {
            let mut scanner = Scanner::default();
            let (head, tail) = bytes.split_at(cut);
            let outcome = scanner
                .feed(head, |_| {})
                .and_then(|()| scanner.feed(tail, |_| {}));
            assert_eq!(
                outcome.unwrap_err(),
                "FATAL: 57P01: terminating",
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn an_impossible_message_length_is_rejected() {
        let take = |bytes: &[u8]| Scanner::default().feed(bytes, |_| {});
        assert!(take(&[b'Z', 0, 0, 0, 3]).is_err());
        assert!(take(&[b'Z', 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn a_startup_packet_contains_its_length() {
        let packet = startup("u", "d");
        assert_eq!(
            packet[..4],
            u32::try_from(packet.len()).unwrap().to_be_bytes()
        );
        assert!(packet.ends_with(b"user\0u\0database\0d\0\0"));
    }
}
