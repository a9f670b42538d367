//! The peer of the compared record layers: it seals any record, valid or not, and opens what
//! they seal, with the ciphers and the key schedule of rustls. Nothing here is our own code,
//! so that a mistake of ours cannot cancel itself out.
//!
//! rustls gives the keys after a handshake, and after each KeyUpdate, through its interface
//! for TLS in the kernel ([`rustls::kernel`]).

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{
    ConnectionTrafficSecrets, ContentType, ExtractedSecrets, ProtocolVersion, Tls13CipherSuite,
};

use super::HEADER_LEN;

/// A handshake message KeyUpdate, without its last byte: whether an update is requested.
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];

/// The next keys of a direction: `true` for those that seal.
type NextSecrets = Box<dyn FnMut(bool) -> ConnectionTrafficSecrets>;

pub(super) struct Peer {
    suite: &'static Tls13CipherSuite,
    next: NextSecrets,
    sealing: Box<dyn MessageEncrypter>,
    sealed: u64,
    opening: Box<dyn MessageDecrypter>,
    opened: u64,
}

/// A rustls connection after its handshake, of which only the keys are used.
pub(super) trait IntoPeer {
    fn into_peer(self) -> Peer;
}

impl IntoPeer for UnbufferedClientConnection {
    fn into_peer(self) -> Peer {
        let (secrets, kernel) = self.dangerous_into_kernel_connection().unwrap();
        Peer::new(secrets, kernel)
    }
}

impl IntoPeer for UnbufferedServerConnection {
    fn into_peer(self) -> Peer {
        let (secrets, kernel) = self.dangerous_into_kernel_connection().unwrap();
        Peer::new(secrets, kernel)
    }
}

impl Peer {
    fn new<D: 'static>(secrets: ExtractedSecrets, mut kernel: KernelConnection<D>) -> Self {
        let suite = kernel.negotiated_cipher_suite().tls13().unwrap();
        let ((sealed, tx), (opened, rx)) = (secrets.tx, secrets.rx);
        let ((tx, tx_iv), (rx, rx_iv)) = (parts(tx), parts(rx));
        Self {
            suite,
            next: Box::new(move |sealing| match sealing {
                true => kernel.update_tx_secret().unwrap().1,
                false => kernel.update_rx_secret().unwrap().1,
            }),
            sealing: suite.aead_alg.encrypter(tx, tx_iv),
            sealed,
            opening: suite.aead_alg.decrypter(rx, rx_iv),
            opened,
        }
    }

    /// Seals one record of `kind` with `content`. Changes the key after a KeyUpdate.
    pub(super) fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        // Zeros follow the type. rustls has no padding, so the type and all zeros except the
        // last are sealed as content, and the last zero in place of the type.
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + padding, 0);
        let last = inner.pop().unwrap();
        let plain = OutboundPlainMessage {
            typ: ContentType::from(last),
            version: ProtocolVersion::TLSv1_3,
            payload: OutboundChunks::Single(&inner),
        };
        let record = self.sealing.encrypt(plain, self.sealed).unwrap().encode();
        self.sealed += 1;
        if kind == u8::from(ContentType::Handshake) && ends_with_key_update(content) {
            let (key, iv) = parts((self.next)(true));
            self.sealing = self.suite.aead_alg.encrypter(key, iv);
            self.sealed = 0;
        }
        record
    }

    /// Opens all of `bytes`. Changes the key after a KeyUpdate.
    pub(super) fn open(&mut self, mut bytes: &[u8]) -> Vec<(ContentType, Vec<u8>)> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            let (record, rest) = bytes.split_at(HEADER_LEN + length);
            assert_eq!(record[..3], [23, 3, 3], "the header of a sealed record");
            records.push(self.open_record(&record[HEADER_LEN..]));
            bytes = rest;
        }
        records
    }

    /// Opens the last records of a failed session. Nothing can be opened afterwards, except
    /// the last records of another session with the same keys and sequence numbers.
    pub(super) fn open_last(&mut self, bytes: &[u8]) -> Vec<(ContentType, Vec<u8>)> {
        let opened = self.opened;
        let records = self.open(bytes);
        self.opened = opened;
        records
    }

    fn open_record(&mut self, sealed: &[u8]) -> (ContentType, Vec<u8>) {
        let mut sealed = sealed.to_vec();
        let version = ProtocolVersion::TLSv1_2;
        let record = InboundOpaqueMessage::new(ContentType::ApplicationData, version, &mut sealed);
        let plain = self.opening.decrypt(record, self.opened);
        let plain = plain.expect("rustls opens what was sealed");
        self.opened += 1;
        let (kind, content) = (plain.typ, plain.payload.to_vec());
        if kind == ContentType::Handshake && ends_with_key_update(&content) {
            let (key, iv) = parts((self.next)(false));
            self.opening = self.suite.aead_alg.decrypter(key, iv);
            self.opened = 0;
        }
        (kind, content)
    }
}

/// Whether the last five bytes are a KeyUpdate. The scripts have no other handshake messages
/// that end like this.
fn ends_with_key_update(content: &[u8]) -> bool {
    matches!(content, [.., a, b, c, d, 0 | 1] if [*a, *b, *c, *d] == KEY_UPDATE)
}

fn parts(secrets: ConnectionTrafficSecrets) -> (AeadKey, Iv) {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        _ => panic!("a suite that TLS 1.3 of rustls does not have"),
    }
}
