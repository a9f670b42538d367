//! A rustls connection between our own buffers, by the unbuffered interface of rustls: the
//! handshake of every session, and the traffic of sessions that stay with rustls.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, Side};

use crate::io::buffer::Buffer;
use crate::tls::error::TlsError;
use crate::tls::records::{HEADER_LEN, PeerState, Records};
use crate::tls::schedule::{self, Suite, TrafficSecrets};

/// A rustls connection of either side, which a session can drive.
pub(crate) trait TlsSide {
    type Data;
    const SIDE: Side;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
}

impl TlsSide for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;
    const SIDE: Side = Side::Server;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl TlsSide for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;
    const SIDE: Side = Side::Client;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// The outcome of a call into rustls.
enum Step {
    /// There may be more to do with the same input.
    Progress,
    PeerClosed,
    /// There is nothing to do without more input.
    WantsInput,
}

/// A rustls connection and the state that is kept next to it.
pub(super) struct Connection<E> {
    pub(super) rustls: E,
    /// The traffic secrets, until rustls seals a record with them.
    secrets: Option<TrafficSecrets>,
    /// Bytes at the front of the input that were passed to rustls as complete records, and
    /// that it has not discarded yet.
    presented: usize,
}

impl<E: TlsSide> Connection<E> {
    pub(super) fn new(rustls: E) -> Self {
        Self {
            rustls,
            secrets: None,
            presented: 0,
        }
    }

    pub(super) fn common(&self) -> &CommonState {
        self.rustls.common()
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.common().is_handshaking()
    }

    pub(super) fn presented(&self) -> usize {
        self.presented
    }

    /// Returns the record layer that continues after a complete handshake. `None` if rustls
    /// must continue: TLS 1.2, a configuration without `SecretCapture`, or a server that has
    /// sent tickets.
    ///
    /// Both sequence numbers are zero: once rustls has sealed a record with the traffic keys
    /// they are not handed over, and it has opened nothing after the last record of the
    /// handshake.
    pub(super) fn records(&mut self) -> Option<Records> {
        let suite = Suite::of(self.common().negotiated_cipher_suite()?)?;
        Records::new(suite, E::SIDE, self.secrets.take()?).ok()
    }

    /// Consumes complete records from `incoming`, and appends their data to `plain` and the
    /// records that rustls wants to send to `pending`. Stops after the last record of the
    /// handshake, even if more bytes follow it.
    pub(super) fn open(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
        pending: &mut Vec<u8>,
    ) -> Result<PeerState, TlsError> {
        let in_traffic = !self.is_handshaking();
        let mut peer = PeerState::Open;
        let mut window = self.next_window(0, incoming).unwrap_or_default();
        loop {
            let input = incoming.filled_mut().get_mut(..window).unwrap_or_default();
            let (discard, step) = self.step(input, plain, pending)?;
            incoming.consume(discard);
            window = window.saturating_sub(discard);
            self.presented = self.presented.saturating_sub(discard);
            match step {
                Step::Progress => continue,
                Step::PeerClosed => {
                    peer = PeerState::Closed;
                    continue;
                }
                Step::WantsInput if !in_traffic && !self.is_handshaking() => return Ok(peer),
                Step::WantsInput => {}
            }
            match self.next_window(window, incoming) {
                Some(larger) => window = larger,
                None => break,
            }
        }
        if in_traffic && peer == PeerState::Open && first_record_len(incoming.filled()).is_some() {
            return Err(TlsError::FragmentedPostHandshake);
        }
        Ok(peer)
    }

    /// Calls rustls once. Returns how many bytes of `input` to discard.
    fn step(
        &mut self,
        input: &mut [u8],
        plain: &mut Buffer,
        pending: &mut Vec<u8>,
    ) -> Result<(usize, Step), TlsError> {
        let (status, secrets) = schedule::capture(|| self.rustls.process(input));
        self.secrets = secrets.or(self.secrets.take());
        let UnbufferedStatus { mut discard, state } = status;
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    if !plain.extend(record.payload) {
                        return Err(TlsError::NoRoom);
                    }
                }
                Step::Progress
            }
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, pending)?;
                // A record of a server after its handshake is a ticket, sealed with the
                // traffic keys. A client's last flight, which is also encoded when its
                // handshake is complete, is sealed with the handshake keys.
                if E::SIDE == Side::Server && !self.is_handshaking() {
                    self.secrets = None;
                }
                Step::Progress
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Progress
            }
            Ok(ConnectionState::PeerClosed) => Step::PeerClosed,
            Ok(_) => Step::WantsInput,
            Err(error) => {
                self.queue_alert(pending);
                return Err(error.into());
            }
        };
        Ok((discard, step))
    }

    /// Returns how much of the input to pass to rustls next, if that is more than `window`
    /// bytes. During the handshake that is one more record, so that rustls sees no record
    /// after the last one of the handshake, or everything if the next record is incomplete.
    /// After the handshake it is everything.
    fn next_window(&mut self, window: usize, incoming: &Buffer) -> Option<usize> {
        if self.is_handshaking() {
            let rest = incoming.filled().get(self.presented..).unwrap_or_default();
            if let Some(length) = first_record_len(rest) {
                self.presented += length;
                return Some(self.presented);
            }
        }
        (incoming.len() > window).then_some(incoming.len())
    }

    /// Queues the alert that rustls has for the peer after an error, which may follow a part
    /// of our flight. The caller reports the original error, so a failure here is
    /// ignored.
    fn queue_alert(&mut self, pending: &mut Vec<u8>) {
        // Only while there is something to send: otherwise rustls would process its input
        // again, which is not passed here, and panic.
        while self.common().wants_write() {
            let Ok(ConnectionState::EncodeTlsData(data)) = self.rustls.process(&mut []).state
            else {
                break;
            };
            if encode(data, pending).is_err() {
                break;
            }
        }
    }

    /// Appends records that contain `data` to `outgoing`, after the records that rustls
    /// wants to send first.
    pub(super) fn seal(
        &mut self,
        data: &[u8],
        outgoing: &mut Buffer,
        pending: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        self.traffic(outgoing, pending, |traffic, room| {
            traffic.encrypt(data, room)
        })
    }

    /// Appends a close_notify alert to `outgoing`.
    pub(super) fn close(
        &mut self,
        outgoing: &mut Buffer,
        pending: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        self.traffic(outgoing, pending, |traffic, room| {
            traffic.queue_close_notify(room)
        })
    }

    fn traffic(
        &mut self,
        outgoing: &mut Buffer,
        pending: &mut Vec<u8>,
        write: impl FnOnce(&mut WriteTraffic<'_, E::Data>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        self.secrets = None;
        loop {
            match self.rustls.process(&mut []).state? {
                ConnectionState::EncodeTlsData(data) => encode(data, pending)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                // `open` has reported it.
                ConnectionState::PeerClosed => {}
                ConnectionState::WriteTraffic(mut traffic) => {
                    if !pending.is_empty() {
                        if !outgoing.extend(pending) {
                            return Err(TlsError::NoRoom);
                        }
                        *pending = Vec::new();
                    }
                    let sealed = write(&mut traffic, outgoing.spare_mut());
                    outgoing.advance(sealed.map_err(encrypt_error)?);
                    return Ok(());
                }
                _ => return Err(TlsError::NotOpen),
            }
        }
    }
}

fn encrypt_error(error: EncryptError) -> TlsError {
    match error {
        EncryptError::InsufficientSize(_) => TlsError::NoRoom,
        EncryptError::EncryptExhausted => TlsError::KeysExhausted,
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, pending: &mut Vec<u8>) -> Result<(), TlsError> {
    // With an empty buffer, rustls returns the size that it needs.
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        data.encode(&mut [])
    else {
        return Ok(());
    };
    let start = pending.len();
    pending.resize(start + required_size, 0);
    let room = pending.get_mut(start..).ok_or(TlsError::NoRoom)?;
    data.encode(room).map(drop).map_err(|_| TlsError::NoRoom)
}

/// Returns the length of the first record if it is complete. The last two bytes of the
/// header are the length of the rest (RFC 8446, 5.1).
fn first_record_len(bytes: &[u8]) -> Option<usize> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let [.., high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    (rest.len() >= length).then_some(HEADER_LEN + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_record_len_needs_a_complete_record() {
        assert_eq!(first_record_len(b""), None);
        assert_eq!(first_record_len(&[23, 3, 3, 0]), None);
        assert_eq!(first_record_len(&[23, 3, 3, 0, 2, 1]), None);
        assert_eq!(first_record_len(&[23, 3, 3, 0, 2, 1, 1]), Some(7));
        assert_eq!(first_record_len(&[23, 3, 3, 0, 1, 1, 1]), Some(6));
    }
}
