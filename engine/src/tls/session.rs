//! A TLS session as a sans-I/O state machine: bytes in, bytes out. Both halves of a relay
//! share one session between their awaits.
//!
//! rustls performs the handshake ([`connection`](super::connection)). A TLS 1.3 session
//! then continues with our own record layer ([`records`](super::records)), and the rustls
//! connection is dropped, along with the peer's certificates and everything else that only
//! the handshake needs (docs/adr/0013-own-tls-record-layer.md).
//!
//! After a failure a session must never seal or open another record.

use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;
use wire::link::LINK_ALPN;

use crate::io::buffer::Buffer;
use crate::tls::connection::Connection;
pub(crate) use crate::tls::connection::TlsSide;
pub(crate) use crate::tls::error::TlsError;
use crate::tls::records::{PeerState, Records};

/// The outcome of a handshake.
pub(crate) struct HandshakeSummary {
    pub(crate) version: Option<ProtocolVersion>,
    /// Whether ALPN negotiated a protocol.
    pub(crate) alpn: bool,
    /// Whether that protocol is the one of links between members.
    pub(crate) is_link: bool,
    /// The peer's certificate chain, leaf first, if it sent one.
    pub(crate) chain: Option<Vec<CertificateDer<'static>>>,
}

/// One TLS connection.
pub(crate) struct Session<E> {
    state: State<E>,
    /// Sealed records to be sent that carry no data: handshake flights, alerts, and the
    /// KeyUpdates of rustls.
    pending: Vec<u8>,
    peer_closed: bool,
    failed: bool,
}

/// Boxed, because otherwise each future that a session passes through would reserve space
/// for it.
enum State<E> {
    /// The handshake, and TLS 1.2 traffic.
    Rustls(Box<Connection<E>>),
    /// TLS 1.3 traffic.
    Records(Box<Records>),
}

impl<E: TlsSide> Session<E> {
    pub(crate) fn new(connection: E) -> Self {
        Self {
            state: State::Rustls(Box::new(Connection::new(connection))),
            pending: Vec::new(),
            peer_closed: false,
            failed: false,
        }
    }

    /// Leaves the handshake state if the handshake is complete; [`Self::open`] has stopped
    /// after its last record. `None` while it is not complete.
    pub(crate) fn finish(&mut self) -> Option<HandshakeSummary> {
        let State::Rustls(connection) = &mut self.state else {
            return None;
        };
        if connection.is_handshaking() {
            return None;
        }
        let common = connection.common();
        let summary = HandshakeSummary {
            version: common.protocol_version(),
            alpn: common.alpn_protocol().is_some(),
            is_link: common.alpn_protocol() == Some(LINK_ALPN),
            chain: common.peer_certificates().map(<[_]>::to_vec),
        };
        if let Some(records) = connection.records() {
            self.state = State::Records(Box::new(records));
        }
        Some(summary)
    }

    /// Bytes at the front of the input that a handshake has read already and still needs: the records with the
    /// beginning of a message that is not complete.
    pub(crate) fn presented(&self) -> usize {
        match &self.state {
            State::Rustls(connection) => connection.presented(),
            State::Records(_) => 0,
        }
    }

    /// Whether the peer has sent close_notify. Everything that it sent before is opened.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether [`Self::open`] has stopped before the end of its input. Other tasks must run before it is called
    /// again.
    pub(crate) fn is_interrupted(&self) -> bool {
        match &self.state {
            State::Rustls(_) => false,
            State::Records(records) => records.is_interrupted(),
        }
    }

    /// Takes the records that must be sent before the next read from the peer.
    /// (After the handshake, [`Self::seal`] sends them first.)
    pub(crate) fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Consumes complete records from `incoming` and appends their plaintext to `plain`.
    /// An empty `plain` of the same size always has room for it. Stops after the last
    /// record of the handshake, so that [`Self::finish`] can be called, and after a number of KeyUpdates
    /// ([`Self::is_interrupted`]).
    ///
    /// # Errors
    /// The peer violated the protocol. The session is over in both directions, and the
    /// pending records contain the alert.
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
            State::Records(records) => records.open(incoming, plain).map_err(|failure| {
                let alert = failure.alert.and_then(|alert| records.fatal(alert).ok());
                pending.extend(alert.iter().flatten());
                failure.error
            }),
        })?;
        self.peer_closed = peer == PeerState::Closed;
        Ok(())
    }

    /// Appends records that contain `plain` to `outgoing`, after any pending records.
    ///
    /// # Errors
    /// The session is not established, its keys are exhausted, or `outgoing` is too small.
    /// The session is over.
    pub(crate) fn seal(&mut self, plain: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.unless_failed(|state, pending| match state {
            State::Rustls(connection) => connection.seal(plain, outgoing, pending),
            State::Records(records) => records.seal(plain, outgoing),
        })
    }

    /// Appends a close_notify alert to `outgoing`.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub(crate) fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.unless_failed(|state, pending| match state {
            State::Rustls(connection) => connection.close(outgoing, pending),
            State::Records(records) => records.close(outgoing),
        })
    }

    /// Runs `step` unless an earlier one failed: after a failure the sequence numbers and
    /// keys of the two sides may disagree.
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

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod differential;
#[cfg(any(test, feature = "fuzzing"))]
mod pair;
#[cfg(test)]
mod tests;
