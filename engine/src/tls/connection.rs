//! A rustls connection between buffers of ours: the handshake of every session,
//! and the traffic of those that keep to rustls.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, Side};

use super::records::{HEADER, Peer, Records};
use super::schedule::{self, Secrets, Suite};
use super::session::TlsError;
use crate::io::buffer::Buffer;

/// The two rustls connections that a session can drive.
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

/// What a call into rustls came to.
enum Step {
    /// There may be more to do.
    Done,
    PeerClosed,
    /// There is nothing to do without more input.
    WantsMore,
}

/// A rustls connection, and what has to be known beside it.
pub(super) struct Connection<E> {
    pub(super) endpoint: E,
    /// Until rustls has sealed a record with them.
    secrets: Option<Secrets>,
    /// Bytes at the front of the input that rustls has seen as whole records
    /// and not discarded yet.
    seen: usize,
}

impl<E: TlsSide> Connection<E> {
    pub(super) fn new(endpoint: E) -> Self {
        Self {
            endpoint,
            secrets: None,
            seen: 0,
        }
    }

    pub(super) fn common(&self) -> &CommonState {
        self.endpoint.common()
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.common().is_handshaking()
    }

    /// The record layer that takes over from a handshake that is done; `None`
    /// where rustls has to go on: TLS 1.2, a configuration that does not give
    /// its secrets away, or a server that has sent tickets.
    ///
    /// Both counters are at zero: with the first record that it seals rustls
    /// keeps the keys, and it has opened nothing behind the handshake's last.
    pub(super) fn records(&mut self) -> Option<Records> {
        let suite = Suite::of(self.common().negotiated_cipher_suite()?)?;
        Records::new(suite, E::SIDE, self.secrets.take()?).ok()
    }

    /// Takes whole records off `incoming`, and appends their data to `plain`;
    /// what rustls has to say goes to `pending`. With the last record of the
    /// handshake it stops, whatever is behind it.
    pub(super) fn open(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
        pending: &mut Vec<u8>,
    ) -> Result<Peer, TlsError> {
        let in_traffic = !self.is_handshaking();
        let mut peer = Peer::Open;
        let mut window = self.widened(0, incoming).unwrap_or_default();
        loop {
            let input = incoming.filled_mut().get_mut(..window).unwrap_or_default();
            let (discard, step) = self.step(input, plain, pending)?;
            incoming.consume(discard);
            window = window.saturating_sub(discard);
            self.seen = self.seen.saturating_sub(discard);
            match step {
                Step::Done => continue,
                Step::PeerClosed => {
                    peer = Peer::Closed;
                    continue;
                }
                Step::WantsMore if !in_traffic && !self.is_handshaking() => return Ok(peer),
                Step::WantsMore => {}
            }
            match self.widened(window, incoming) {
                Some(wider) => window = wider,
                None => break,
            }
        }
        if in_traffic && peer == Peer::Open && first_record(incoming.filled()).is_some() {
            return Err(TlsError::FragmentedPostHandshake);
        }
        Ok(peer)
    }

    /// One call into rustls; how many bytes of `input` it is done with.
    fn step(
        &mut self,
        input: &mut [u8],
        plain: &mut Buffer,
        pending: &mut Vec<u8>,
    ) -> Result<(usize, Step), TlsError> {
        let (status, secrets) = schedule::catch(|| self.endpoint.process(input));
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
                Step::Done
            }
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, pending)?;
                // A client's last flight comes when its handshake is done, too.
                if E::SIDE == Side::Server && !self.is_handshaking() {
                    self.secrets = None;
                }
                Step::Done
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Done
            }
            Ok(ConnectionState::PeerClosed) => Step::PeerClosed,
            Ok(_) => Step::WantsMore,
            Err(error) => {
                self.queue_alert(pending);
                return Err(error.into());
            }
        };
        Ok((discard, step))
    }

    /// How much of the input rustls is to see next, after `window` bytes of it:
    /// in the handshake one record more, so that it sees none behind the last,
    /// and the beginning of one that has not come completely; in traffic all.
    fn widened(&mut self, window: usize, incoming: &Buffer) -> Option<usize> {
        if self.is_handshaking() {
            let unseen = incoming.filled().get(self.seen..).unwrap_or_default();
            if let Some(length) = first_record(unseen) {
                self.seen += length;
                return Some(self.seen);
            }
        }
        (incoming.len() > window).then_some(incoming.len())
    }

    /// After an error rustls has an alert for the peer, perhaps behind a part
    /// of its own flight. The error itself is what gets reported, so a failure
    /// here changes nothing.
    fn queue_alert(&mut self, pending: &mut Vec<u8>) {
        // Only while there is something: with nothing to send rustls would look
        // at the input again, which is not there, and panic.
        while self.common().wants_write() {
            let Ok(ConnectionState::EncodeTlsData(data)) = self.endpoint.process(&mut []).state
            else {
                break;
            };
            if encode(data, pending).is_err() {
                break;
            }
        }
    }

    /// Seals `data` at the end of `outgoing`, behind whatever rustls has to say
    /// first.
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

    /// Seals a close_notify at the end of `outgoing`.
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
            match self.endpoint.process(&mut []).state? {
                ConnectionState::EncodeTlsData(data) => encode(data, pending)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                // `open` has said so.
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
    // Asked with no room at all, rustls says how much it needs.
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

/// Bytes of the first record where it is whole: the header's last two are the
/// length of the rest (RFC 8446, 5.1).
fn first_record(bytes: &[u8]) -> Option<usize> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let [.., high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    (rest.len() >= length).then_some(HEADER + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_are_told_from_pieces() {
        assert_eq!(first_record(b""), None);
        assert_eq!(first_record(&[23, 3, 3, 0]), None);
        assert_eq!(first_record(&[23, 3, 3, 0, 2, 1]), None);
        assert_eq!(first_record(&[23, 3, 3, 0, 2, 1, 1]), Some(7));
        assert_eq!(first_record(&[23, 3, 3, 0, 1, 1, 1]), Some(6));
    }
}
