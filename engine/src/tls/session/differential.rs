//! Differential test of our record layer against rustls.
//!
//! After one handshake, two sessions hold the same keys: one continues with our record layer,
//! the other with rustls, as with `tls_record_layer = own | rustls`. Both get the same bytes
//! from a [`Peer`], which follows a [`Script`]. They must produce the same plaintext, the same
//! outcome (open, closed, or refused with the same alert), and, byte for byte, the same
//! answers. The exceptions are listed in [`deviations`], and the script ends with the first.
//!
//! A part of the fuzz targets (feature `fuzzing`) and of the unit tests, never of the product.

#![cfg_attr(
    not(test),
    allow(dead_code, reason = "the unit tests use more than the fuzz targets")
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "for tests and fuzz targets, which fail by panicking"
)]

mod deviations;
mod peer;
mod script;
#[cfg(test)]
mod tests;

use rustls::{AlertDescription, ContentType, Side};

use self::deviations::{Deviation, Rustls};
use self::peer::{IntoPeer, Peer};
use self::script::{Action, Script};
use super::pair::{BOTH_OWN, Setup, begin};
use super::*;
use crate::io::buffer::Size;
use crate::tls::records::HEADER_LEN;

/// A NewSessionTicket (RFC 8446, 4.6.1): a minute, age_add 7, an empty nonce, two bytes of
/// ticket, no extensions.
const TICKET: &[u8] = &[4, 0, 0, 15, 0, 0, 0, 60, 0, 0, 0, 7, 0, 0, 2, 7, 7, 0, 0];

/// The state of a session after what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    /// After close_notify.
    Closed,
    /// With the alert that the session sends.
    Refused(Option<AlertDescription>),
    /// Only an expectation: not predicted.
    Unknown,
}

/// One of the two sessions, and what it has received.
struct Subject<E> {
    session: Session<E>,
    incoming: Option<Buffer>,
    plain: Vec<u8>,
    refused: bool,
}

impl<E: TlsSide> Subject<E> {
    fn new(session: Session<E>) -> Self {
        Self {
            session,
            incoming: Some(Buffer::take(Size::Large)),
            plain: Vec::new(),
            refused: false,
        }
    }

    fn is_open(&self) -> bool {
        !self.refused && !self.session.peer_closed()
    }

    /// One read. Like a connection, a session reads no more after the end.
    fn read(&mut self, bytes: &[u8]) {
        if !self.is_open() {
            return;
        }
        let mut incoming = self.incoming.take().unwrap();
        assert!(
            incoming.extend(bytes),
            "a record is shorter than the buffer"
        );
        let mut plain = Buffer::take(Size::Large);
        loop {
            self.refused = self.session.open(&mut incoming, &mut plain).is_err();
            if self.refused || !self.session.is_interrupted() {
                break;
            }
        }
        self.plain.extend_from_slice(plain.filled());
        self.incoming = Some(incoming.make_room());
    }

    /// What the session sends for these bytes of data, if anything.
    fn seal(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = Buffer::take(Size::Large);
        let sealed = self.session.seal(data, &mut out);
        assert_eq!(sealed.is_err(), self.refused, "seals unless it has refused");
        sealed.ok().map(|()| out.filled().to_vec())
    }

    /// Must be called once, at the end.
    fn outcome(&mut self, peer: &mut Peer) -> Outcome {
        if !self.refused {
            return match self.session.peer_closed() {
                true => Outcome::Closed,
                false => Outcome::Open,
            };
        }
        let pending = self.session.take_pending();
        let alert = peer.open_last(&pending).pop().map(|(kind, content)| {
            assert_eq!((kind, content[0]), (ContentType::Alert, 2));
            AlertDescription::from(content[1])
        });
        Outcome::Refused(alert)
    }
}

/// Both sessions, and their common peer.
struct Comparison<E> {
    own: Subject<E>,
    rustls: Subject<E>,
    peer: Peer,
    side: Side,
    /// What is on the way to the sessions.
    records: Vec<Vec<u8>>,
    /// The sizes of the reads, repeated.
    reads: std::iter::Cycle<std::vec::IntoIter<usize>>,
    /// The data that was sent, as long as nothing was damaged.
    sent: Vec<u8>,
    /// Something was damaged: nothing that follows can be opened.
    damaged: bool,
    warnings: usize,
    /// Records in a row that carry no data.
    non_data: usize,
}

/// How a comparison ended, without a panic.
#[derive(Debug)]
struct Ended {
    /// The deviation that the script reached, unless both had ended before.
    deviation: Option<Deviation>,
    own: Outcome,
    rustls: Outcome,
}

/// Runs a script, up to the first deviation.
///
/// # Panics
/// If the two differ in any other way.
fn compare(script: Script) -> Ended {
    let setup = Setup {
        suite: Some(script.suite),
        server_is_own: script.side == Side::Server,
        client_is_own: script.side == Side::Client,
        // The script decides when a ticket is sent.
        tickets: false,
        ..BOTH_OWN
    };
    let (mut server, mut client) = setup.pair();
    begin(&mut client);
    for _ in 0..2 {
        deliver_flight(&client.take_pending(), &mut server);
        deliver_flight(&server.take_pending(), &mut client);
    }
    match script.side {
        Side::Client => Comparison::new(client, server, &script).run(script.actions),
        Side::Server => Comparison::new(server, client, &script).run(script.actions),
    }
}

fn deliver_flight<E: TlsSide>(flight: &[u8], to: &mut Session<E>) {
    let mut incoming = Buffer::take(Size::Large);
    assert!(incoming.extend(flight));
    let plain = &mut Buffer::take(Size::Tiny);
    to.open(&mut incoming, plain).unwrap();
    assert!(incoming.is_empty() && plain.is_empty());
}

impl<E: TlsSide> Comparison<E> {
    /// Makes both sessions from one, the handshake of which is complete.
    fn new<P: IntoPeer>(mut rustls: Session<E>, peer: Session<P>, script: &Script) -> Self {
        let State::Rustls(connection) = &mut rustls.state else {
            panic!("`finish` was not called");
        };
        let own = Session {
            state: State::Records(Box::new(connection.records().unwrap())),
            pending: Vec::new(),
            peer_closed: false,
            failed: false,
        };
        let State::Rustls(peer) = peer.state else {
            panic!("the peer is rustls");
        };
        Self {
            own: Subject::new(own),
            rustls: Subject::new(rustls),
            peer: peer.rustls.into_peer(),
            side: script.side,
            records: Vec::new(),
            reads: script.reads.clone().into_iter().cycle(),
            sent: Vec::new(),
            damaged: false,
            warnings: 0,
            non_data: 0,
        }
    }

    fn run(mut self, actions: Vec<Action>) -> Ended {
        for action in actions {
            let deviation = self.act(action).filter(|_| !self.damaged);
            if deviation.is_some() {
                return self.end(deviation);
            }
        }
        self.end(None)
    }

    fn act(&mut self, action: Action) -> Option<Deviation> {
        match action {
            Action::Data { length, padding } => self.send(23, &data(length), padding),
            Action::KeyUpdate { request } => self.send(22, &[24, 0, 0, 1, request.into()], 0),
            Action::Handshake(content) => self.send(22, &content, 0),
            Action::Alert(content) => self.send(21, &content, 0),
            Action::Inner { kind, content } => self.send(kind, &content, 0),
            Action::Zeros(length) => self.send(0, &vec![0; length], 0),
            Action::Plaintext { header, body } => {
                let length = u16::try_from(body.len()).unwrap();
                let record = [&header[..], &length.to_be_bytes(), &body].concat();
                self.send_unsealed(record, true)
            }
            Action::Header { header, length } => {
                let content = data(20);
                let mut record = self.peer.seal(23, &content, 0);
                let unchanged = record[3..HEADER_LEN].to_vec();
                record[..3].copy_from_slice(&header);
                if let Some(length) = length {
                    record[3..HEADER_LEN].copy_from_slice(&length.to_be_bytes());
                }
                let fits = record[3..HEADER_LEN] == unchanged;
                if fits && header == [23, 3, 3] {
                    if !self.damaged {
                        self.sent.extend(content);
                    }
                    self.records.push(record);
                    return None;
                }
                self.send_unsealed(record, fits)
            }
            Action::Answer(length) => {
                self.answer(length);
                None
            }
            // A second damage could undo the first.
            _ if self.damaged => None,
            damage => {
                self.damaged = self.damage(&damage);
                None
            }
        }
    }

    fn send(&mut self, kind: u8, content: &[u8], padding: usize) -> Option<Deviation> {
        let (kind, content, padding) = without_padding(kind, content, padding);
        let record = self.peer.seal(kind, content, padding);
        let overlong = record.len() > HEADER_LEN + (1 << 14) + 256;
        if overlong && self.damaged {
            // Refused before it is opened, or after, or not reached.
            return None;
        }
        self.records.push(record);
        let deviation = deviations::of_record(self.side, kind, content, padding, self.warnings);
        self.warnings += usize::from(kind == 21 && content == [1, 90]);
        self.non_data = match kind == 23 && !content.is_empty() {
            true => 0,
            false => self.non_data + 1,
        };
        if kind == 23 && !self.damaged && content.len() + padding <= 1 << 14 {
            self.sent.extend_from_slice(content);
        }
        deviation.or_else(|| deviations::of_repetition(self.non_data))
    }

    /// Sends a record that must not be accepted.
    fn send_unsealed(&mut self, record: Vec<u8>, fits: bool) -> Option<Deviation> {
        if self.damaged {
            return None;
        }
        let header = [record[0], record[1], record[2]];
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        self.records.push(record);
        let deviation = deviations::of_header(header, length, fits);
        self.damaged = deviation.is_none();
        deviation
    }

    /// Changes what is on the way. Returns whether there was anything to change.
    fn damage(&mut self, how: &Action) -> bool {
        let Some(mut last) = self.records.pop() else {
            return false;
        };
        let sealed = last.len() - HEADER_LEN;
        match how {
            Action::FlipBit(bit) if sealed > 0 => {
                let bit = bit % (sealed * 8);
                last[HEADER_LEN + bit / 8] ^= 1 << (bit % 8);
            }
            Action::Truncate(length) if sealed > 0 => {
                last.truncate(cut(&last, 1 + length % sealed));
            }
            Action::Duplicate => self.records.push(last.clone()),
            Action::Swap if !self.records.is_empty() => {
                let end = self.records.len() - 1;
                self.records.insert(end, last);
                return true;
            }
            Action::Lose => return true,
            _ => {
                self.records.push(last);
                return false;
            }
        }
        self.records.push(last);
        true
    }

    /// Delivers everything that is on the way, to both in the same pieces.
    fn deliver(&mut self) {
        let bytes = std::mem::take(&mut self.records).concat();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let read = self.reads.next().unwrap().min(rest.len());
            let (piece, after) = rest.split_at(read);
            self.own.read(piece);
            self.rustls.read(piece);
            rest = after;
        }
    }

    /// Both send the same data, which must be the same records.
    fn answer(&mut self, length: usize) {
        self.deliver();
        let data = data(length);
        let own = self.own.seal(&data);
        let rustls = self.rustls.seal(&data);
        assert!(own == rustls, "sealed differently");
        let records = self.peer.open(&own.unwrap_or_default());
        let content = records
            .into_iter()
            .filter(|(kind, _)| *kind == ContentType::ApplicationData);
        let opened: Vec<u8> = content.flat_map(|(_, content)| content).collect();
        assert!(opened == data || self.own.refused);
    }

    fn end(mut self, deviation: Option<Deviation>) -> Ended {
        self.deliver();
        let own = self.own.outcome(&mut self.peer);
        let rustls = self.rustls.outcome(&mut self.peer);
        assert!(self.sent.starts_with(&self.own.plain), "wrong plaintext");
        match deviation {
            Some(expected) if own != rustls => {
                check(&expected, own, rustls);
                assert!(self.rustls.plain.starts_with(&self.own.plain));
            }
            // Also if both ended before they reached the deviating record.
            _ => {
                assert_eq!(own, rustls);
                assert!(self.own.plain == self.rustls.plain, "other plaintext");
                let complete = own == Outcome::Open && !self.damaged;
                assert!(!complete || self.own.plain == self.sent, "missing data");
                self.close();
            }
        }
        Ended {
            deviation,
            own,
            rustls,
        }
    }

    /// Both close, unless they have refused. rustls answers a request for a KeyUpdate before
    /// any record, ours only before data (RFC 8446, 4.6.3).
    fn close(mut self) {
        let [mut own, mut rustls] = [(); 2].map(|()| Buffer::take(Size::Small));
        let closed = self.own.session.close(&mut own).is_ok();
        assert_eq!(closed, self.rustls.session.close(&mut rustls).is_ok());
        assert_eq!(closed, !self.own.refused);
        let own = self.peer.open_last(own.filled());
        let mut rustls = self.peer.open_last(rustls.filled());
        rustls.retain(|(_, content)| content[..] != [24, 0, 0, 1, 0]);
        assert_eq!(own, rustls);
        let close = (ContentType::Alert, vec![1, 0]);
        assert_eq!(own, vec![close; usize::from(closed)]);
    }
}

/// The length of a record that loses at least `lost` bytes at its end. The next record on the way begins with 23: if
/// that were the first lost byte, the record would be complete again.
fn cut(record: &[u8], lost: usize) -> usize {
    let mut end = record.len() - lost;
    while end > HEADER_LEN && record[end] == 23 {
        end -= 1;
    }
    end
}

/// The type is the last byte that is not zero, wherever it comes from.
fn without_padding(kind: u8, content: &[u8], padding: usize) -> (u8, &[u8], usize) {
    match content.iter().rposition(|byte| *byte != 0) {
        Some(end) if kind == 0 => (content[end], &content[..end], padding + content.len() - end),
        _ => (kind, content, padding),
    }
}

fn check(expected: &Deviation, own: Outcome, rustls: Outcome) {
    let own_is_as_expected = expected.own == own || expected.own == Outcome::Unknown;
    let rustls_is_as_expected = match expected.rustls {
        Rustls::Does(outcome) => rustls == outcome,
        Rustls::Refuses => matches!(rustls, Outcome::Refused(_)),
        Rustls::Any => true,
    };
    assert!(
        own_is_as_expected && rustls_is_as_expected,
        "{expected:?}, but own {own:?}, rustls {rustls:?}"
    );
}

/// Data of this length that differs from its neighbours.
fn data(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// For the fuzz target: runs the script that the bytes stand for.
///
/// # Panics
/// If our record layer and rustls differ, except in the known deviations.
pub(in crate::tls) fn against_rustls(bytes: &[u8]) {
    compare(Script::from_bytes(bytes));
}
