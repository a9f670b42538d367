//! The error type of a TLS session.

/// Why a session cannot continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The peer violated the protocol. The alert that reports it is pending.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// A handshake message that is fragmented over several records, after the handshake.
    /// RFC 8446, 5.1 allows it, but no known implementation sends one: a KeyUpdate has 5
    /// bytes. The record layer of this crate does not reassemble them, and rustls cannot seal while a
    /// fragment is still unread.
    #[error("fragmented post-handshake message")]
    FragmentedPostHandshake,
    /// The limit on records under one key is reached (RFC 8446, 5.5).
    #[error("traffic keys exhausted")]
    KeysExhausted,
    /// A buffer of this process is too small. This is a bug. The session ends as after an
    /// error of the peer.
    #[error("record does not fit its buffer")]
    NoRoom,
    /// Data to be sent before the handshake or after the close, or any operation after a
    /// failure.
    #[error("session not open")]
    NotOpen,
    /// The cryptographic library rejected lengths that it must accept. This is a bug.
    #[error("cryptographic library failed")]
    Cryptography(#[from] aws_lc_rs::error::Unspecified),
}
