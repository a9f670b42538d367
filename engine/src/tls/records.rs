//! TLS 1.3's record layer after the handshake (RFC 8446, 4.6, 5 and 6): records
//! are opened from where they were read to where they are written from, and
//! sealed likewise. No byte is copied, and nothing is held but two keys.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use aws_lc_rs::error::Unspecified;
use rustls::{
    AlertDescription, ContentType, Error, HandshakeType, InvalidMessage, PeerMisbehaved, Side,
};

use super::schedule::{Secret, Secrets, Suite};
use super::session::TlsError;
use crate::io::buffer::Buffer;

/// Bytes of a record's header: type, version, length (RFC 8446, 5.1).
pub(super) const HEADER: usize = 5;
/// Bytes of the tag of each AEAD that TLS 1.3 has.
const TAG: usize = 16;
/// Most bytes of data in one record (RFC 8446, 5.1).
const MOST_DATA: usize = 1 << 14;
/// Most bytes of a record after its header (RFC 8446, 5.2).
const MOST_SEALED: usize = MOST_DATA + 256;
/// Bytes of a sealed alert.
const ALERT: usize = HEADER + 2 + 1 + TAG;
/// Records in a row that cost us work and bring no data: as many as BoringSSL's
/// `kMaxEmptyRecords` and `kMaxKeyUpdates`, and rustls'.
const MOST_BARREN: u8 = 32;

/// The two directions of a session.
pub(super) struct Records {
    suite: &'static Suite,
    side: Side,
    opening: Direction,
    sealing: Direction,
    /// The peer has asked for a KeyUpdate, due before our next data.
    owes_key_update: bool,
    /// Records in a row that have brought no data.
    barren: u8,
}

/// A key with all that belongs to it.
struct Direction {
    secret: Secret,
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// The next record's number.
    sequence: u64,
}

impl Direction {
    fn new(secret: Secret, suite: &Suite) -> Result<Self, Unspecified> {
        let (key, iv) = secret.keys(suite)?;
        Ok(Self {
            secret,
            key,
            iv,
            sequence: 0,
        })
    }

    fn update(&mut self, suite: &Suite) -> Result<(), Unspecified> {
        *self = Self::new(self.secret.next(suite)?, suite)?;
        Ok(())
    }

    /// The record number's, which is used once (RFC 8446, 5.3).
    fn nonce(&mut self) -> Result<Nonce, Unspecified> {
        let mut nonce = self.iv;
        let [.., a, b, c, d, e, f, g, h] = &mut nonce;
        let number = self.sequence.to_be_bytes();
        for (byte, by) in [a, b, c, d, e, f, g, h].into_iter().zip(number) {
            *byte ^= by;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(Unspecified)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Opens `sealed` into as many bytes less a tag.
    fn open(
        &mut self,
        header: [u8; HEADER],
        sealed: &[u8],
        room: &mut [u8],
    ) -> Result<(), Unspecified> {
        let (text, tag) = sealed.split_at_checked(room.len()).ok_or(Unspecified)?;
        let nonce = self.nonce()?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), text, tag, room)
    }

    /// Writes one record with `content` to the front of `room`; how long it is.
    fn seal(
        &mut self,
        kind: ContentType,
        content: &[u8],
        room: &mut [u8],
    ) -> Result<usize, TlsError> {
        let sealed = content.len() + 1 + TAG;
        let room = room.get_mut(..HEADER + sealed).ok_or(TlsError::NoRoom)?;
        let length = u16::try_from(sealed).map_err(|_| TlsError::NoRoom)?;
        let [high, low] = length.to_be_bytes();
        let header = [ContentType::ApplicationData.into(), 3, 3, high, low];
        let (front, rest) = room.split_at_mut(HEADER);
        front.copy_from_slice(&header);
        let (text, tail) = rest.split_at_mut(content.len());
        let nonce = self.nonce()?;
        let kind = [u8::from(kind)];
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), content, text, &kind, tail)?;
        Ok(HEADER + sealed)
    }
}

/// What the peer did wrong, and the alert that tells it so; none where it has
/// sent one itself, and knows.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: TlsError,
    pub(super) alert: Option<AlertDescription>,
}

impl Refusal {
    fn new(alert: AlertDescription, error: impl Into<Error>) -> Self {
        Self {
            error: TlsError::Rustls(error.into()),
            alert: Some(alert),
        }
    }

    fn of_content(got_type: ContentType) -> Self {
        let error = Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData],
            got_type,
        };
        Self::new(AlertDescription::UnexpectedMessage, error)
    }
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        Self {
            error,
            alert: Some(AlertDescription::InternalError),
        }
    }
}

/// Whether the peer may send more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Open,
    Closed,
}

impl Records {
    /// From where the handshake ends on `side`.
    pub(super) fn new(
        suite: &'static Suite,
        side: Side,
        secrets: Secrets,
    ) -> Result<Self, Unspecified> {
        let (theirs, own) = match side {
            Side::Client => (secrets.server, secrets.client),
            Side::Server => (secrets.client, secrets.server),
        };
        Ok(Self {
            suite,
            side,
            opening: Direction::new(theirs, suite)?,
            sealing: Direction::new(own, suite)?,
            owes_key_update: false,
            barren: 0,
        })
    }

    /// Takes whole records off `incoming`, and appends their data to `plain`.
    pub(super) fn open(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
    ) -> Result<Peer, Refusal> {
        while let Some((header, sealed)) = next_record(incoming.filled())? {
            let taken = HEADER + sealed.len();
            let inner = sealed.len().checked_sub(TAG).filter(|inner| *inner > 0);
            let inner = inner.ok_or_else(bad_record_mac)?;
            let room = plain.spare_mut().get_mut(..inner);
            let room = room.ok_or(TlsError::NoRoom)?;
            let opened = self.opening.open(header, sealed, room);
            opened.map_err(|_: Unspecified| bad_record_mac())?;
            let (kind, content) = without_padding(room)?;
            let peer = match kind {
                ContentType::ApplicationData if content.is_empty() => {
                    self.count_barren(PeerMisbehaved::TooManyEmptyFragments)?;
                    Peer::Open
                }
                ContentType::ApplicationData => {
                    let data = content.len();
                    plain.advance(data);
                    self.barren = 0;
                    Peer::Open
                }
                ContentType::Handshake => self.handshake(content).map(|()| Peer::Open)?,
                ContentType::Alert => self.alerted(content)?,
                other => return Err(Refusal::of_content(other)),
            };
            incoming.consume(taken);
            if peer == Peer::Closed {
                return Ok(peer);
            }
        }
        Ok(Peer::Open)
    }

    /// The messages in a record. One that goes on in the next is refused: it is
    /// legal, and nobody sends it, since the longest is a ticket.
    fn handshake(&mut self, mut content: &[u8]) -> Result<(), Refusal> {
        if content.is_empty() {
            return Err(empty());
        }
        self.count_barren(PeerMisbehaved::TooManyKeyUpdateRequests)?;
        while !content.is_empty() {
            let [kind, a, b, c, rest @ ..] = content else {
                return Err(fragmented());
            };
            let [high, middle, low] = [*a, *b, *c].map(usize::from);
            let length = (high << 16) | (middle << 8) | low;
            let (body, rest) = rest.split_at_checked(length).ok_or_else(fragmented)?;
            match (HandshakeType::from(*kind), self.side) {
                (HandshakeType::KeyUpdate, _) if rest.is_empty() => self.key_update(body)?,
                // RFC 8446, 5.1: nothing may follow under the old key.
                (HandshakeType::KeyUpdate, _) => {
                    return Err(Refusal::new(
                        AlertDescription::UnexpectedMessage,
                        PeerMisbehaved::KeyEpochWithPendingFragment,
                    ));
                }
                // Never used: sessions are not resumed.
                (HandshakeType::NewSessionTicket, Side::Client) => {}
                (got_type, _) => {
                    return Err(Refusal::new(
                        AlertDescription::UnexpectedMessage,
                        Error::InappropriateHandshakeMessage {
                            expect_types: vec![HandshakeType::KeyUpdate],
                            got_type,
                        },
                    ));
                }
            }
            content = rest;
        }
        Ok(())
    }

    /// One more in a row; too many of them are `misbehaviour`.
    fn count_barren(&mut self, misbehaviour: PeerMisbehaved) -> Result<(), Refusal> {
        self.barren += 1;
        match self.barren > MOST_BARREN {
            true => Err(Refusal::new(
                AlertDescription::UnexpectedMessage,
                misbehaviour,
            )),
            false => Ok(()),
        }
    }

    /// RFC 8446, 4.6.3.
    fn key_update(&mut self, body: &[u8]) -> Result<(), Refusal> {
        let invalid = |alert| Err(Refusal::new(alert, InvalidMessage::InvalidKeyUpdate));
        let requested = match body {
            [0] => false,
            [1] => true,
            [_] => return invalid(AlertDescription::IllegalParameter),
            _ => return invalid(AlertDescription::DecodeError),
        };
        self.owes_key_update |= requested;
        let updated = self.opening.update(self.suite);
        updated.map_err(|error| Refusal::from(TlsError::from(error)))
    }

    /// RFC 8446, 6: whatever its level, an alert ends the session, but for two.
    fn alerted(&mut self, content: &[u8]) -> Result<Peer, Refusal> {
        if content.is_empty() {
            return Err(empty());
        }
        let [_level, description] = content else {
            return Err(Refusal::new(
                AlertDescription::DecodeError,
                InvalidMessage::MessageTooShort,
            ));
        };
        match AlertDescription::from(*description) {
            AlertDescription::CloseNotify => Ok(Peer::Closed),
            AlertDescription::UserCanceled => {
                self.count_barren(PeerMisbehaved::TooManyWarningAlertsReceived)?;
                Ok(Peer::Open)
            }
            fatal => Err(Refusal {
                error: TlsError::Rustls(Error::AlertReceived(fatal)),
                alert: None,
            }),
        }
    }

    /// Seals `data` at the end of `outgoing`.
    pub(super) fn seal(&mut self, data: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        for piece in data.chunks(MOST_DATA) {
            // The key's last record tells of the next key.
            if self.owes_key_update || self.sealing.sequence + 1 >= self.suite.limit {
                self.send_key_update(outgoing)?;
            }
            self.write(ContentType::ApplicationData, piece, outgoing)?;
        }
        Ok(())
    }

    fn send_key_update(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        // One byte of body: the peer need not follow.
        const MESSAGE: [u8; 5] = [24, 0, 0, 1, 0];
        self.write(ContentType::Handshake, &MESSAGE, outgoing)?;
        self.owes_key_update = false;
        Ok(self.sealing.update(self.suite)?)
    }

    /// Seals a close_notify at the end of `outgoing`.
    pub(super) fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        const WARNING: u8 = 1;
        let alert = [WARNING, AlertDescription::CloseNotify.into()];
        self.write(ContentType::Alert, &alert, outgoing)
    }

    /// A record with what goes before the end of a session that has failed.
    pub(super) fn fatal(&mut self, alert: AlertDescription) -> Result<[u8; ALERT], TlsError> {
        const FATAL: u8 = 2;
        let mut record = [0; ALERT];
        let alert = [FATAL, alert.into()];
        self.sealing.seal(ContentType::Alert, &alert, &mut record)?;
        Ok(record)
    }

    fn write(
        &mut self,
        kind: ContentType,
        content: &[u8],
        outgoing: &mut Buffer,
    ) -> Result<(), TlsError> {
        let written = self.sealing.seal(kind, content, outgoing.spare_mut())?;
        outgoing.advance(written);
        Ok(())
    }
}

/// A record's header, and what it covers.
type Sealed<'a> = ([u8; HEADER], &'a [u8]);

/// The first record, `None` where it has not come yet. What cannot become one is
/// refused at once.
fn next_record(bytes: &[u8]) -> Result<Option<Sealed<'_>>, Refusal> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    // The version says nothing (RFC 8446, 5.1).
    let [kind, _, _, high, low] = *header;
    let kind = ContentType::from(kind);
    if kind != ContentType::ApplicationData {
        return Err(Refusal::of_content(kind));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MOST_SEALED {
        return Err(record_overflow());
    }
    Ok(rest.get(..length).map(|sealed| (*header, sealed)))
}

/// Type and content of what a record held: the type is the last byte that is not
/// zero (RFC 8446, 5.4).
fn without_padding(inner: &[u8]) -> Result<(ContentType, &[u8]), Refusal> {
    if inner.len() > MOST_DATA + 1 {
        return Err(record_overflow());
    }
    let end = inner.iter().rposition(|byte| *byte != 0);
    let found = end.and_then(|end| inner.split_at_checked(end));
    match found {
        Some((content, [kind, ..])) => Ok((ContentType::from(*kind), content)),
        _ => Err(Refusal::new(
            AlertDescription::UnexpectedMessage,
            PeerMisbehaved::IllegalTlsInnerPlaintext,
        )),
    }
}

fn bad_record_mac() -> Refusal {
    Refusal::new(AlertDescription::BadRecordMac, Error::DecryptError)
}

/// RFC 8446, 5.4: of the kinds of content only data may be none.
fn empty() -> Refusal {
    Refusal::new(
        AlertDescription::UnexpectedMessage,
        InvalidMessage::InvalidEmptyPayload,
    )
}

fn record_overflow() -> Refusal {
    Refusal::new(
        AlertDescription::RecordOverflow,
        Error::PeerSentOversizedRecord,
    )
}

fn fragmented() -> Refusal {
    Refusal {
        error: TlsError::FragmentedPostHandshake,
        alert: Some(AlertDescription::UnexpectedMessage),
    }
}

#[cfg(test)]
mod tests;
