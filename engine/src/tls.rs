//! The TLS pump: rustls' record layer between buffers of our own.
//!
//! rustls' unbuffered connections take ciphertext where we read it and leave
//! ciphertext where we write it from, which saves two copies each way over its
//! `read_tls`/`write_tls` and keeps an idle connection free of buffers. The
//! pump does no I/O: bytes in, bytes out, so that both halves of a relay can
//! use one session between their awaits.

use rustls::CommonState;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus,
};

use crate::buffer::Buffer;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// rustls refused what the peer sent; an alert for it is in `pending`.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// A handshake message in pieces after the handshake. It is legal, nobody
    /// sends it (a KeyUpdate is 5 bytes), and rustls could not seal with the
    /// first piece still unread.
    #[error("fragmented post-handshake message")]
    FragmentedPostHandshake,
    /// The record counter's limit for one key is reached (RFC 8446, 5.5).
    #[error("traffic keys exhausted")]
    KeysExhausted,
    /// A buffer of ours was too small: a bug, ended like an error of the peer.
    #[error("record does not fit its buffer")]
    NoRoom,
    /// Data was to be sent before the handshake or after the close.
    #[error("session not open for sending")]
    NotOpen,
}

/// The two rustls connections that a session can drive.
pub(crate) trait Endpoint {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
}

impl Endpoint for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;

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

impl Endpoint for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;

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

/// One TLS connection.
pub(crate) struct Session<E> {
    /// Boxed: it is a kilobyte, and the futures that it passes through would
    /// each have room for it.
    endpoint: Box<E>,
    /// Records that rustls wants sent: handshake flights, KeyUpdates, alerts.
    pending: Vec<u8>,
    peer_closed: bool,
    failed: bool,
}

impl<E: Endpoint> Session<E> {
    pub(crate) fn new(endpoint: E) -> Self {
        Self {
            endpoint: Box::new(endpoint),
            pending: Vec::new(),
            peer_closed: false,
            failed: false,
        }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.endpoint.common().is_handshaking()
    }

    /// The peer sent close_notify; all that it sent before has been opened.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    pub(crate) fn common(&self) -> &CommonState {
        self.endpoint.common()
    }

    /// Takes the records that have to be sent before the peer is read again.
    /// (In traffic, [`Self::seal`] takes them along.)
    pub(crate) fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Takes whole records off `incoming` and appends their plaintext to
    /// `plain`, which has room for it where it is as large and empty.
    ///
    /// # Errors
    /// The peer broke the protocol: the session is over, and what is pending
    /// tells the peer so.
    pub(crate) fn open(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
    ) -> Result<(), TlsError> {
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.endpoint.process(incoming.filled_mut());
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        if !plain.extend(record.payload) {
                            return Err(TlsError::NoRoom);
                        }
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.pending)?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    self.failed = true;
                    self.queue_alert();
                    return Err(error.into());
                }
            };
            incoming.consume(discard);
            if !more {
                break;
            }
        }
        if !self.is_handshaking() && !self.peer_closed && has_whole_record(incoming.filled()) {
            return Err(TlsError::FragmentedPostHandshake);
        }
        Ok(())
    }

    /// After an error rustls has an alert for the peer, perhaps behind a part
    /// of its own flight. The error itself is what gets reported, so a failure
    /// here changes nothing.
    fn queue_alert(&mut self) {
        // Only while there is something: with nothing to send rustls would look
        // at the input again, which is not there, and panic.
        while self.endpoint.common().wants_write() {
            let Ok(ConnectionState::EncodeTlsData(data)) = self.endpoint.process(&mut []).state
            else {
                break;
            };
            if encode(data, &mut self.pending).is_err() {
                break;
            }
        }
    }

    /// Seals `plain` into records at the end of `outgoing`, behind whatever
    /// rustls has to say first.
    ///
    /// # Errors
    /// The session is not established, exhausted, or `outgoing` is too small.
    pub(crate) fn seal(&mut self, plain: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.traffic(outgoing, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Seals a close_notify at the end of `outgoing`.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub(crate) fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.traffic(outgoing, |traffic, room| traffic.queue_close_notify(room))
    }

    fn traffic(
        &mut self,
        outgoing: &mut Buffer,
        write: impl FnOnce(
            &mut rustls::unbuffered::WriteTraffic<'_, E::Data>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        if self.failed {
            return Err(TlsError::NotOpen);
        }
        loop {
            match self.endpoint.process(&mut []).state? {
                ConnectionState::EncodeTlsData(data) => encode(data, &mut self.pending)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                ConnectionState::WriteTraffic(mut traffic) => {
                    if !self.pending.is_empty() {
                        if !outgoing.extend(&self.pending) {
                            return Err(TlsError::NoRoom);
                        }
                        self.pending = Vec::new();
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

/// A record is a 5-byte header, its last two the payload's length (RFC 8446, 5.1).
fn has_whole_record(bytes: &[u8]) -> bool {
    match bytes {
        [_, _, _, high, low, rest @ ..] => {
            rest.len() >= usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};

    use super::*;
    use crate::buffer::Size;

    type Server = Session<UnbufferedServerConnection>;
    type Client = Session<UnbufferedClientConnection>;

    fn configs(
        version: &'static rustls::SupportedProtocolVersion,
    ) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![made.cert.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    fn pair(version: &'static rustls::SupportedProtocolVersion) -> (Server, Client) {
        let (server, client) = configs(version);
        let name = ServerName::try_from("localhost").unwrap();
        (
            Session::new(UnbufferedServerConnection::new(server).unwrap()),
            Session::new(UnbufferedClientConnection::new(client, name).unwrap()),
        )
    }

    /// Feeds `bytes` to `to` in pieces of `piece` bytes; what it opens.
    fn feed<E: Endpoint>(
        to: &mut Session<E>,
        bytes: &[u8],
        piece: usize,
    ) -> Result<Vec<u8>, TlsError> {
        let mut incoming = Buffer::take(Size::Large);
        let mut opened = Vec::new();
        for chunk in bytes.chunks(piece) {
            assert!(incoming.extend(chunk));
            let mut plain = Buffer::take(Size::Large);
            to.open(&mut incoming, &mut plain)?;
            opened.extend_from_slice(plain.filled());
            incoming = incoming.make_room();
        }
        Ok(opened)
    }

    fn handshake(server: &mut Server, client: &mut Client, piece: usize) {
        feed(client, b"", 1).unwrap();
        client
            .open(
                &mut Buffer::take(Size::Small),
                &mut Buffer::take(Size::Small),
            )
            .unwrap();
        for _ in 0..4 {
            let flight = client.take_pending();
            feed(server, &flight, piece).unwrap();
            let flight = server.take_pending();
            feed(client, &flight, piece).unwrap();
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
    }

    fn sealed<E: Endpoint>(from: &mut Session<E>, plain: &[u8]) -> Vec<u8> {
        let mut out = Buffer::take(Size::Large);
        from.seal(plain, &mut out).unwrap();
        out.filled().to_vec()
    }

    #[test]
    fn bytes_survive_both_ways_in_any_pieces_and_both_versions() {
        for version in [&TLS12, &TLS13] {
            for piece in [1, 7, 1000, 65_000] {
                let (mut server, mut client) = pair(version);
                handshake(&mut server, &mut client, piece);
                let up: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
                let down: Vec<u8> = (0..60_000_u32).map(|i| (i * 7) as u8).collect();
                let record = sealed(&mut client, &up);
                assert_eq!(feed(&mut server, &record, piece).unwrap(), up);
                let record = sealed(&mut server, &down);
                assert_eq!(feed(&mut client, &record, piece).unwrap(), down);
            }
        }
    }

    #[test]
    fn a_full_large_read_fits_a_large_buffer_once_sealed() {
        let (mut server, mut client) = pair(&TLS13);
        handshake(&mut server, &mut client, 65_000);
        let plain = vec![1; crate::buffer::LARGE];
        let record = sealed(&mut server, &plain);
        assert_eq!(record.len(), plain.len() + 8 * 22);
    }

    #[test]
    fn close_notify_reaches_the_peer_behind_the_data() {
        let (mut server, mut client) = pair(&TLS13);
        handshake(&mut server, &mut client, 65_000);
        let mut out = Buffer::take(Size::Small);
        server.seal(b"bye", &mut out).unwrap();
        server.close(&mut out).unwrap();
        assert_eq!(feed(&mut client, out.filled(), 1).unwrap(), b"bye");
        assert!(client.peer_closed());
        // The other direction is still open: a half-close.
        let record = sealed(&mut client, b"not done");
        assert_eq!(feed(&mut server, &record, 1000).unwrap(), b"not done");
    }

    #[test]
    fn a_key_update_is_answered_with_the_next_data() {
        let (mut server, mut client) = pair(&TLS13);
        handshake(&mut server, &mut client, 65_000);
        let mut out = Buffer::take(Size::Small);
        if let Ok(ConnectionState::WriteTraffic(traffic)) = client.endpoint.process(&mut []).state {
            traffic.refresh_traffic_keys().unwrap();
        }
        client.seal(b"under the new key", &mut out).unwrap();
        assert_eq!(
            feed(&mut server, out.filled(), 3).unwrap(),
            b"under the new key"
        );
        let answer = sealed(&mut server, b"and back");
        assert!(answer.len() > b"and back".len() + 22, "carries a KeyUpdate");
        assert_eq!(feed(&mut client, &answer, 5).unwrap(), b"and back");
    }

    #[test]
    fn a_flipped_bit_ends_the_session_with_an_alert() {
        let (mut server, mut client) = pair(&TLS13);
        handshake(&mut server, &mut client, 65_000);
        let mut record = sealed(&mut client, b"select 1");
        *record.last_mut().unwrap() ^= 1;
        let error = feed(&mut server, &record, 65_000).unwrap_err();
        assert!(matches!(
            error,
            TlsError::Rustls(rustls::Error::DecryptError)
        ));
        let alert = server.take_pending();
        assert!(matches!(
            feed(&mut client, &alert, 65_000).unwrap_err(),
            TlsError::Rustls(rustls::Error::AlertReceived(
                rustls::AlertDescription::BadRecordMac
            ))
        ));
        assert!(matches!(
            server.seal(b"x", &mut Buffer::take(Size::Small)),
            Err(TlsError::NotOpen)
        ));
    }

    #[test]
    fn sealing_before_the_handshake_is_refused() {
        let (mut server, _) = pair(&TLS13);
        assert!(matches!(
            server.seal(b"x", &mut Buffer::take(Size::Small)),
            Err(TlsError::NotOpen)
        ));
    }

    #[test]
    fn whole_records_are_told_from_pieces() {
        assert!(!has_whole_record(b""));
        assert!(!has_whole_record(&[23, 3, 3, 0]));
        assert!(!has_whole_record(&[23, 3, 3, 0, 2, 1]));
        assert!(has_whole_record(&[23, 3, 3, 0, 2, 1, 1]));
    }

    /// For scripts/instructions: each does what its name says 100 times inside
    /// `measured`, of which valgrind counts the instructions.
    mod instructions {
        use super::*;

        #[inline(never)]
        fn measured(work: impl FnOnce()) {
            work();
        }

        fn established() -> (Server, Client) {
            let (mut server, mut client) = pair(&TLS13);
            handshake(&mut server, &mut client, 65_000);
            (server, client)
        }

        #[test]
        #[ignore = "for scripts/instructions"]
        fn tls_open_a_query() {
            let (mut server, mut client) = established();
            let queries: Vec<_> = (0..100).map(|_| sealed(&mut client, &[7; 60])).collect();
            measured(|| {
                for query in &queries {
                    let mut incoming = Buffer::take(Size::Small);
                    let mut plain = Buffer::take(Size::Small);
                    assert!(incoming.extend(query));
                    server.open(&mut incoming, &mut plain).unwrap();
                    assert_eq!(plain.len(), 60);
                }
            });
        }

        #[test]
        #[ignore = "for scripts/instructions"]
        fn tls_seal_an_answer() {
            let (mut server, _client) = established();
            measured(|| {
                for _ in 0..100 {
                    let mut out = Buffer::take(Size::Small);
                    server.seal(&[7; 90], &mut out).unwrap();
                }
            });
        }

        #[test]
        #[ignore = "for scripts/instructions"]
        fn tls_seal_64_kib() {
            let (mut server, _client) = established();
            let plain = vec![7; 64 * 1024];
            measured(|| {
                for _ in 0..100 {
                    let mut out = Buffer::take(Size::Large);
                    server.seal(&plain, &mut out).unwrap();
                }
            });
        }
    }
}
