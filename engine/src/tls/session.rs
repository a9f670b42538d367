//! TLS between buffers of our own: bytes in, bytes out, so that both halves of a
//! relay can use one session between their awaits.
//!
//! rustls makes the handshake ([`connection`]). After it a session of TLS 1.3 goes
//! on with a record layer of ours ([`records`]), and rustls is let go of, with the
//! peer's certificates and all that only the handshake needed
//! (docs/adr/0013-own-tls-record-layer.md).

use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;

use crate::io::buffer::Buffer;
use crate::tls::connection::Connection;
pub(crate) use crate::tls::connection::TlsSide;
use crate::tls::records::{Peer, Records};

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// What the peer sent was refused; an alert for it is in `pending`.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// A handshake message in pieces after the handshake. It is legal, nobody
    /// sends it (a KeyUpdate is 5 bytes), our records do not join them, and
    /// rustls could not seal with the first piece still unread.
    #[error("fragmented post-handshake message")]
    FragmentedPostHandshake,
    /// The record counter's limit for one key is reached (RFC 8446, 5.5).
    #[error("traffic keys exhausted")]
    KeysExhausted,
    /// A buffer of ours was too small: a bug, ended like an error of the peer.
    #[error("record does not fit its buffer")]
    NoRoom,
    /// Data was to be sent before the handshake or after the close, or anything
    /// to be done after a failure.
    #[error("session not open")]
    NotOpen,
    /// The cryptographic library refused lengths that it has to take: a bug.
    #[error("cryptographic library failed")]
    Cryptography(#[from] aws_lc_rs::error::Unspecified),
}

/// What a handshake came to.
pub(crate) struct Agreed {
    pub(crate) version: Option<ProtocolVersion>,
    /// Whether a protocol was agreed on by ALPN.
    pub(crate) alpn: bool,
    /// The peer's certificates, its own first, where it has shown any.
    pub(crate) chain: Option<Vec<CertificateDer<'static>>>,
}

/// One TLS connection.
pub(crate) struct Session<E> {
    state: State<E>,
    /// Records to be sent that are not data: handshake flights, alerts, and
    /// rustls' KeyUpdates.
    pending: Vec<u8>,
    peer_closed: bool,
    failed: bool,
}

/// Boxed, since the futures that a session passes through would each have room
/// for it.
enum State<E> {
    /// The handshake, and traffic of TLS 1.2.
    Rustls(Box<Connection<E>>),
    /// ShardActivity of TLS 1.3.
    Records(Box<Records>),
}

impl<E: TlsSide> Session<E> {
    pub(crate) fn new(endpoint: E) -> Self {
        Self {
            state: State::Rustls(Box::new(Connection::new(endpoint))),
            pending: Vec::new(),
            peer_closed: false,
            failed: false,
        }
    }

    /// Ends a handshake that is done; [`Self::open`] has stopped behind it.
    /// `None` while it is not.
    pub(crate) fn finish(&mut self) -> Option<Agreed> {
        let State::Rustls(connection) = &mut self.state else {
            return None;
        };
        if connection.is_handshaking() {
            return None;
        }
        let common = connection.common();
        let agreed = Agreed {
            version: common.protocol_version(),
            alpn: common.alpn_protocol().is_some(),
            chain: common.peer_certificates().map(<[_]>::to_vec),
        };
        if let Some(records) = connection.records() {
            self.state = State::Records(Box::new(records));
        }
        Some(agreed)
    }

    /// The peer sent close_notify; all that it sent before has been opened.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Takes the records that have to be sent before the peer is read again.
    /// (In traffic, [`Self::seal`] takes them along.)
    pub(crate) fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Takes whole records off `incoming` and appends their plaintext to
    /// `plain`, which has room for it where it is as large and empty. Stops with
    /// the end of the handshake, for [`Self::finish`].
    ///
    /// # Errors
    /// The peer broke the protocol: the session is over, for both directions, and
    /// what is pending tells the peer so.
    pub(crate) fn open(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
    ) -> Result<(), TlsError> {
        if self.peer_closed {
            return Ok(());
        }
        let peer = self.unless_failed(|state, pending| match state {
            State::Rustls(connection) => connection.open(incoming, plain, pending),
            State::Records(records) => records.open(incoming, plain).map_err(|refusal| {
                let alert = refusal.alert.and_then(|alert| records.fatal(alert).ok());
                pending.extend(alert.iter().flatten());
                refusal.error
            }),
        })?;
        self.peer_closed = peer == Peer::Closed;
        Ok(())
    }

    /// Seals `plain` into records at the end of `outgoing`, behind whatever has
    /// to be said first.
    ///
    /// # Errors
    /// The session is not established, exhausted, or `outgoing` is too small: the
    /// session is over.
    pub(crate) fn seal(&mut self, plain: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.unless_failed(|state, pending| match state {
            State::Rustls(connection) => connection.seal(plain, outgoing, pending),
            State::Records(records) => records.seal(plain, outgoing),
        })
    }

    /// Seals a close_notify at the end of `outgoing`.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub(crate) fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.unless_failed(|state, pending| match state {
            State::Rustls(connection) => connection.close(outgoing, pending),
            State::Records(records) => records.close(outgoing),
        })
    }

    /// A failure is the last of a session: the two sides' numbers and keys may be
    /// out of step behind it.
    fn unless_failed<T>(
        &mut self,
        step: impl FnOnce(&mut State<E>, &mut Vec<u8>) -> Result<T, TlsError>,
    ) -> Result<T, TlsError> {
        if self.failed {
            return Err(TlsError::NotOpen);
        }
        let result = step(&mut self.state, &mut self.pending);
        self.failed = result.is_err();
        result
    }
}

#[cfg(test)]
mod tests;
