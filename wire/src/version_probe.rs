//! A probe for the newest protocol version that the upstream Postgres supports.
//!
//! It exists because the version is negotiated with the client before the password is requested,
//! while the connection to Postgres is opened only after the password was right. It must never log
//! in: the connection is closed after the first response.

use crate::backend::{login_frame, parse_error_response};
use crate::error::{BackendError, SqlState};
use crate::message::{Cursor, write_c_str, write_untagged};
use crate::startup::ProtocolVersion;

/// A version that PostgreSQL will never have. Its betas send it for the same purpose.
/// [PostgreSQL 19 `pqcomm.h`, PG_PROTOCOL_GREASE]
const GREASE: ProtocolVersion = ProtocolVersion {
    major: 3,
    minor: 9999,
};

/// The result of parsing the first response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeStep {
    /// Read more bytes and append them.
    Read,
    /// The newest version that both Postgres and this crate support. Close the connection.
    Supports(ProtocolVersion),
    /// The version is unknown. Close the connection.
    Refuse(BackendError),
}

/// Appends a StartupMessage that requests protocol 3.9999, so that Postgres responds with its
/// newest version before it checks anything else. `role` need not exist; it is cut at its first
/// NUL.
pub fn write_probe_request(role: &str, out: &mut Vec<u8>) {
    let role = role.split('\0').next().unwrap_or_default();
    write_untagged(out, |out| {
        out.extend_from_slice(&GREASE.to_u32().to_be_bytes());
        write_c_str(out, b"user");
        write_c_str(out, role.as_bytes());
        out.push(0);
    });
}

/// Parses all bytes that Postgres sent.
///
/// NegotiateProtocolVersion holds a version, which is capped at 3.2 here. A server that requests
/// authentication without negotiating, or refuses the version with `feature_not_supported`,
/// predates negotiation and supports 3.0 only.
#[must_use]
pub fn parse_probe_response(bytes: &[u8]) -> ProbeStep {
    let frame = match login_frame(bytes) {
        Ok(Some(frame)) => frame,
        Ok(None) => return ProbeStep::Read,
        Err(error) => return ProbeStep::Refuse(error),
    };
    match frame.tag() {
        b'v' => parse_negotiate_version(frame.body()),
        b'R' => ProbeStep::Supports(ProtocolVersion::V3_0),
        b'E' => match parse_error_response(frame.body()) {
            BackendError::Refused { sqlstate, .. }
                if sqlstate == SqlState::FEATURE_NOT_SUPPORTED =>
            {
                ProbeStep::Supports(ProtocolVersion::V3_0)
            }
            error => ProbeStep::Refuse(error),
        },
        tag => ProbeStep::Refuse(BackendError::UnexpectedMessage { tag }),
    }
}

/// Accepts the same versions as libpq: the whole version word, 3.x except 3.1, which never existed.
/// [libpq 18 `fe-protocol3.c`, pqGetNegotiateProtocolVersion3]
fn parse_negotiate_version(body: &[u8]) -> ProbeStep {
    const MALFORMED: ProbeStep =
        ProbeStep::Refuse(BackendError::Malformed("NegotiateProtocolVersion"));
    let mut cursor = Cursor::new(body);
    // No option was requested, so none can be rejected.
    let (Some(word), Some(0), true) = (cursor.u32(), cursor.u32(), cursor.is_empty()) else {
        return MALFORMED;
    };
    let version = ProtocolVersion::from_u32(word);
    match (version.major, version.minor) {
        (3, 0) => ProbeStep::Supports(ProtocolVersion::V3_0),
        (3, 2..) => ProbeStep::Supports(ProtocolVersion::V3_2),
        _ => MALFORMED,
    }
}
