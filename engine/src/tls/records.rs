//! The TLS 1.3 record layer after the handshake (RFC 8446, 4.6, 5 and 6). It opens records
//! from the buffer that was read into the buffer that is written from, and seals likewise:
//! no intermediate copy and no allocation. Its state is one key and one secret per
//! direction.
//!
//! It must never release plaintext of a record that was not authenticated, use a nonce
//! twice, or continue after an error.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use aws_lc_rs::error::Unspecified;
use rustls::{
    AlertDescription, ContentType, Error, HandshakeType, InvalidMessage, PeerMisbehaved, Side,
};

use crate::io::buffer::Buffer;
use crate::tls::error::TlsError;
use crate::tls::schedule::{Suite, TrafficSecret, TrafficSecrets};

/// Bytes of a record header: type, version, length (RFC 8446, 5.1).
pub(super) const HEADER_LEN: usize = 5;
/// Bytes of the authentication tag, the same for each AEAD of TLS 1.3.
const TAG_LEN: usize = 16;
/// Maximum bytes of content in one record (RFC 8446, 5.1).
const MAX_PLAINTEXT: usize = 1 << 14;
/// Maximum bytes of a record after its header (RFC 8446, 5.2).
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;
/// Bytes of a sealed alert.
const ALERT_RECORD_LEN: usize = HEADER_LEN + 2 + 1 + TAG_LEN;
/// Records that cost work and carry no data, which a peer may send before anything else moves: the value of
/// `kMaxEmptyRecords` and `kMaxKeyUpdates` in BoringSSL, and of the same limits in rustls.
const INITIAL_NON_DATA: u32 = 32;
/// How many of them a peer may save up. A JDK whose key limit is exceeded answers each record in flight
/// with a KeyUpdate: 16 MiB of records are more than the socket buffers of both sides hold.
const MAX_NON_DATA: u32 = 1024;
/// Bytes of a peer's data that allow another one. Each record that is sealed for the peer does as well.
const BYTES_PER_NON_DATA: u32 = 1024;
/// KeyUpdates that are processed in a row, about 0.1 ms: each derives a secret and a key.
const KEY_UPDATES_PER_CALL: u32 = 32;

/// The record layer of one session, for both directions.
pub(super) struct Records {
    suite: &'static Suite,
    side: Side,
    opening: Direction,
    sealing: Direction,
    /// The peer requested a KeyUpdate, which is due before our next data.
    key_update_due: bool,
    /// A token bucket for records without data, in bytes: [`BYTES_PER_NON_DATA`] for each.
    allowance: u32,
    /// KeyUpdates that this call may still process.
    key_updates_left: u32,
}

/// The keys and the sequence number of one direction.
struct Direction {
    secret: TrafficSecret,
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// The sequence number of the next record.
    sequence: u64,
}

impl Direction {
    fn new(secret: TrafficSecret, suite: &Suite) -> Result<Self, Unspecified> {
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

    /// Returns the nonce of the next sequence number, which is used once (RFC 8446, 5.3).
    fn nonce(&mut self) -> Result<Nonce, Unspecified> {
        let mut nonce = self.iv;
        let [.., a, b, c, d, e, f, g, h] = &mut nonce;
        let sequence = self.sequence.to_be_bytes();
        for (byte, by) in [a, b, c, d, e, f, g, h].into_iter().zip(sequence) {
            *byte ^= by;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(Unspecified)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Opens `sealed` into `room`, which is shorter by the tag.
    fn open(
        &mut self,
        header: [u8; HEADER_LEN],
        sealed: &[u8],
        room: &mut [u8],
    ) -> Result<(), Unspecified> {
        let (text, tag) = sealed.split_at_checked(room.len()).ok_or(Unspecified)?;
        let nonce = self.nonce()?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), text, tag, room)
    }

    /// Writes one record with `content` to the front of `room`. Returns its length.
    fn seal(
        &mut self,
        kind: ContentType,
        content: &[u8],
        room: &mut [u8],
    ) -> Result<usize, TlsError> {
        let sealed = content.len() + 1 + TAG_LEN;
        let room = room
            .get_mut(..HEADER_LEN + sealed)
            .ok_or(TlsError::NoRoom)?;
        let length = u16::try_from(sealed).map_err(|_| TlsError::NoRoom)?;
        let [high, low] = length.to_be_bytes();
        let header = [ContentType::ApplicationData.into(), 3, 3, high, low];
        let (front, rest) = room.split_at_mut(HEADER_LEN);
        front.copy_from_slice(&header);
        let (text, tail) = rest.split_at_mut(content.len());
        let nonce = self.nonce()?;
        let kind = [u8::from(kind)];
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), content, text, &kind, tail)?;
        Ok(HEADER_LEN + sealed)
    }
}

/// A protocol violation by the peer, and the alert that reports it. There is no alert if
/// the error is an alert that the peer sent.
#[derive(Debug)]
pub(super) struct RecordError {
    pub(super) error: TlsError,
    pub(super) alert: Option<AlertDescription>,
}

impl RecordError {
    fn new(alert: AlertDescription, error: impl Into<Error>) -> Self {
        Self {
            error: TlsError::Rustls(error.into()),
            alert: Some(alert),
        }
    }

    fn unexpected_content(got_type: ContentType) -> Self {
        let error = Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData],
            got_type,
        };
        Self::new(AlertDescription::UnexpectedMessage, error)
    }
}

impl From<TlsError> for RecordError {
    fn from(error: TlsError) -> Self {
        Self {
            error,
            alert: Some(AlertDescription::InternalError),
        }
    }
}

/// Whether the peer has closed its sending direction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PeerState {
    Open,
    Closed,
}

impl Records {
    /// Starts from the end of the handshake of `side`, with both sequence numbers at zero.
    pub(super) fn new(
        suite: &'static Suite,
        side: Side,
        secrets: TrafficSecrets,
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
            key_update_due: false,
            allowance: INITIAL_NON_DATA * BYTES_PER_NON_DATA,
            key_updates_left: KEY_UPDATES_PER_CALL,
        })
    }

    /// Consumes complete records from `incoming` and appends their data to `plain`. Nothing
    /// after a close_notify is read (RFC 8446, 6.1). Stops after [`KEY_UPDATES_PER_CALL`], and
    /// [`Self::is_interrupted`] is then true.
    pub(super) fn open(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
    ) -> Result<PeerState, RecordError> {
        self.key_updates_left = KEY_UPDATES_PER_CALL;
        while let Some((header, sealed)) = next_record(incoming.filled())? {
            let taken = HEADER_LEN + sealed.len();
            let inner = sealed.len().checked_sub(TAG_LEN);
            let inner = inner.ok_or_else(bad_record_mac)?;
            let room = plain.spare_mut().get_mut(..inner);
            let room = room.ok_or(TlsError::NoRoom)?;
            let opened = self.opening.open(header, sealed, room);
            opened.map_err(|_: Unspecified| bad_record_mac())?;
            let (kind, content) = strip_padding(room)?;
            let peer = match kind {
                ContentType::ApplicationData if content.is_empty() => {
                    self.count_non_data(PeerMisbehaved::TooManyEmptyFragments)?;
                    PeerState::Open
                }
                ContentType::ApplicationData => {
                    let data = content.len();
                    plain.advance(data);
                    // At most 2^14.
                    self.allow(u32::try_from(data).unwrap_or(0));
                    PeerState::Open
                }
                ContentType::Handshake => self.handshake(content).map(|()| PeerState::Open)?,
                ContentType::Alert => self.alert(content)?,
                other => return Err(RecordError::unexpected_content(other)),
            };
            incoming.consume(taken);
            if peer == PeerState::Closed || self.is_interrupted() {
                return Ok(peer);
            }
        }
        Ok(PeerState::Open)
    }

    /// Whether the last call of [`Self::open`] may have left complete records in its input: other tasks must run
    /// before they are opened.
    pub(super) fn is_interrupted(&self) -> bool {
        self.key_updates_left == 0
    }

    /// Handles the handshake messages of one record. A message that continues in the next
    /// record is refused: it is legal, but the longest message here is a ticket, and no known
    /// implementation fragments it.
    fn handshake(&mut self, mut content: &[u8]) -> Result<(), RecordError> {
        if content.is_empty() {
            return Err(empty_content());
        }
        self.count_non_data(PeerMisbehaved::TooManyKeyUpdateRequests)?;
        while !content.is_empty() {
            let [kind, a, b, c, rest @ ..] = content else {
                return Err(fragmented());
            };
            let [high, middle, low] = [*a, *b, *c].map(usize::from);
            let length = (high << 16) | (middle << 8) | low;
            let (body, rest) = rest.split_at_checked(length).ok_or_else(fragmented)?;
            match (HandshakeType::from(*kind), self.side) {
                (HandshakeType::KeyUpdate, _) if rest.is_empty() => self.key_update(body)?,
                // RFC 8446, 5.1: no message may follow a key change in the same record.
                (HandshakeType::KeyUpdate, _) => {
                    return Err(RecordError::new(
                        AlertDescription::UnexpectedMessage,
                        PeerMisbehaved::KeyEpochWithPendingFragment,
                    ));
                }
                // Ignored: sessions are not resumed.
                (HandshakeType::NewSessionTicket, Side::Client) => {}
                (got_type, _) => {
                    return Err(RecordError::new(
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

    /// Counts a record that carries no data against what both sides have moved since. Beyond that it is
    /// `misbehaviour`. RFC 8446 has no such limit; without it a peer could make us work for nothing.
    fn count_non_data(&mut self, misbehaviour: PeerMisbehaved) -> Result<(), RecordError> {
        let left = self.allowance.checked_sub(BYTES_PER_NON_DATA);
        self.allowance = left
            .ok_or_else(|| RecordError::new(AlertDescription::UnexpectedMessage, misbehaviour))?;
        Ok(())
    }

    /// Allows more records without data, after `bytes` have moved.
    fn allow(&mut self, bytes: u32) {
        let allowance = self.allowance.saturating_add(bytes);
        self.allowance = allowance.min(MAX_NON_DATA * BYTES_PER_NON_DATA);
    }

    /// RFC 8446, 4.6.3.
    fn key_update(&mut self, body: &[u8]) -> Result<(), RecordError> {
        let invalid = |alert| Err(RecordError::new(alert, InvalidMessage::InvalidKeyUpdate));
        let requested = match body {
            [0] => false,
            [1] => true,
            [_] => return invalid(AlertDescription::IllegalParameter),
            _ => return invalid(AlertDescription::DecodeError),
        };
        self.key_update_due |= requested;
        self.key_updates_left = self.key_updates_left.saturating_sub(1);
        let updated = self.opening.update(self.suite);
        updated.map_err(|error| RecordError::from(TlsError::from(error)))
    }

    /// RFC 8446, 6: the level is ignored, and every alert except close_notify and
    /// user_canceled ends the session with an error.
    fn alert(&mut self, content: &[u8]) -> Result<PeerState, RecordError> {
        if content.is_empty() {
            return Err(empty_content());
        }
        let [_level, description] = content else {
            return Err(RecordError::new(
                AlertDescription::DecodeError,
                InvalidMessage::MessageTooShort,
            ));
        };
        match AlertDescription::from(*description) {
            AlertDescription::CloseNotify => Ok(PeerState::Closed),
            AlertDescription::UserCanceled => {
                self.count_non_data(PeerMisbehaved::TooManyWarningAlertsReceived)?;
                Ok(PeerState::Open)
            }
            fatal => Err(RecordError {
                error: TlsError::Rustls(Error::AlertReceived(fatal)),
                alert: None,
            }),
        }
    }

    /// Appends records that contain `data` to `outgoing`, none if `data` is empty. A requested
    /// KeyUpdate precedes them (RFC 8446, 4.6.3), and each key seals a limited number of records
    /// (RFC 8446, 5.5).
    pub(super) fn seal(&mut self, data: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        for piece in data.chunks(MAX_PLAINTEXT) {
            // The last record under a key is a KeyUpdate.
            if self.key_update_due || self.sealing.sequence + 1 >= self.suite.record_limit {
                self.send_key_update(outgoing)?;
            }
            self.write(ContentType::ApplicationData, piece, outgoing)?;
            self.allow(BYTES_PER_NON_DATA);
        }
        Ok(())
    }

    fn send_key_update(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        // update_not_requested: the peer need not update its own key.
        const MESSAGE: [u8; 5] = [24, 0, 0, 1, 0];
        self.write(ContentType::Handshake, &MESSAGE, outgoing)?;
        self.key_update_due = false;
        Ok(self.sealing.update(self.suite)?)
    }

    /// Appends a close_notify alert to `outgoing`.
    pub(super) fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        const WARNING: u8 = 1;
        let alert = [WARNING, AlertDescription::CloseNotify.into()];
        self.write(ContentType::Alert, &alert, outgoing)
    }

    /// Seals a fatal alert, the last record of a failed session.
    pub(super) fn fatal(
        &mut self,
        alert: AlertDescription,
    ) -> Result<[u8; ALERT_RECORD_LEN], TlsError> {
        const FATAL: u8 = 2;
        let mut record = [0; ALERT_RECORD_LEN];
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

/// A record header and the ciphertext that follows it.
type SealedRecord<'a> = ([u8; HEADER_LEN], &'a [u8]);

/// Returns the first record, or `None` if it is incomplete. Bytes that cannot become a valid
/// record are refused as soon as the header is complete: an outer type that is not
/// application data (RFC 8446, 5), or too great a length (RFC 8446, 5.2).
fn next_record(bytes: &[u8]) -> Result<Option<SealedRecord<'_>>, RecordError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    // The version is ignored (RFC 8446, 5.1), but authenticated as additional data.
    let [kind, _, _, high, low] = *header;
    let kind = ContentType::from(kind);
    if kind != ContentType::ApplicationData {
        return Err(RecordError::unexpected_content(kind));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_CIPHERTEXT {
        return Err(record_overflow());
    }
    Ok(rest.get(..length).map(|sealed| (*header, sealed)))
}

/// Splits a TLSInnerPlaintext into content type and content. The type is the last byte that
/// is not zero (RFC 8446, 5.4).
fn strip_padding(inner: &[u8]) -> Result<(ContentType, &[u8]), RecordError> {
    if inner.len() > MAX_PLAINTEXT + 1 {
        return Err(record_overflow());
    }
    let end = inner.iter().rposition(|byte| *byte != 0);
    let found = end.and_then(|end| inner.split_at_checked(end));
    match found {
        Some((content, [kind, ..])) => Ok((ContentType::from(*kind), content)),
        _ => Err(RecordError::new(
            AlertDescription::UnexpectedMessage,
            PeerMisbehaved::IllegalTlsInnerPlaintext,
        )),
    }
}

fn bad_record_mac() -> RecordError {
    RecordError::new(AlertDescription::BadRecordMac, Error::DecryptError)
}

/// RFC 8446, 5.4: only application data may be empty.
fn empty_content() -> RecordError {
    RecordError::new(
        AlertDescription::UnexpectedMessage,
        InvalidMessage::InvalidEmptyPayload,
    )
}

fn record_overflow() -> RecordError {
    RecordError::new(
        AlertDescription::RecordOverflow,
        Error::PeerSentOversizedRecord,
    )
}

fn fragmented() -> RecordError {
    RecordError {
        error: TlsError::FragmentedPostHandshake,
        alert: Some(AlertDescription::UnexpectedMessage),
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Records {
    /// Replaces the limit on records under one key.
    pub(super) fn limit_records(&mut self, limit: u64) {
        self.suite = self.suite.with_record_limit(limit);
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod arbitrary;
#[cfg(test)]
mod tests;
