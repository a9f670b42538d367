//! Which protocol versions the Postgres behind speaks.
//!
//! It exists because the client has to be told before the password is asked for, and Postgres is
//! dialled only after the password was right. It must never log in: the connection is closed after the
//! first answer.

use crate::backend::{login_frame, parse_error_response};
use crate::error::{BackendError, SqlState};
use crate::message::{Cursor, write_c_str, write_untagged};
use crate::startup::ProtocolVersion;

/// A version that PostgreSQL will never have, and its betas send for the same purpose.
/// [PostgreSQL 19 `pqcomm.h`, PG_PROTOCOL_GREASE]
const GREASE: ProtocolVersion = ProtocolVersion {
    major: 3,
    minor: 9999,
};

/// What the first answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeStep {
    /// Read more bytes behind the same ones.
    Read,
    /// The newest version that both Postgres and this crate speak. Close the connection.
    Supports(ProtocolVersion),
    /// Nothing was learnt. Close the connection.
    Refuse(BackendError),
}

/// Appends a StartupMessage that asks for protocol 3.9999, so that Postgres names its newest version
/// before it looks at anything else. `role` need not exist; a NUL in it ends it.
pub fn write_probe_request(role: &str, out: &mut Vec<u8>) {
    let role = role.split('\0').next().unwrap_or_default();
    write_untagged(out, |out| {
        out.extend_from_slice(&GREASE.to_u32().to_be_bytes());
        write_c_str(out, b"user");
        write_c_str(out, role.as_bytes());
        out.push(0);
    });
}

/// Looks at everything that Postgres answered.
///
/// NegotiateProtocolVersion names a version, of which this crate uses at most 3.2. A server that asks
/// for authentication at once, or refuses the version as a feature that it has not, knows nothing of
/// negotiation, so it speaks 3.0.
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

/// The same versions that libpq takes: the whole word, 3.x, and not 3.1, which never existed.
/// [libpq 18 `fe-protocol3.c`, pqGetNegotiateProtocolVersion3]
fn parse_negotiate_version(body: &[u8]) -> ProbeStep {
    const MALFORMED: ProbeStep =
        ProbeStep::Refuse(BackendError::Malformed("NegotiateProtocolVersion"));
    let mut cursor = Cursor::new(body);
    // No option was asked for, so none can be unknown.
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
