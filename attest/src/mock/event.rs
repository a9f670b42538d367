//! Runtime events of a dstack guest, and their replay into RTMR3.

use serde::Serialize;
use sha2::{Digest, Sha384};

use super::MockError;

/// The name of the event after which all events come from the application.
pub const SYSTEM_READY: &str = "system-ready";

/// Type of dstack's runtime events. [dstack `cc-eventlog`, `DSTACK_RUNTIME_EVENT_TYPE`]
pub(super) const RUNTIME_EVENT: u32 = 0x0800_0001;

/// How the digest of a runtime event is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestVersion {
    /// SHA-384 of `type (u32 LE) ":" name ":" payload`.
    #[default]
    V1,
    /// SHA-384 of the canonical JSON (RFC 8785) of name, payload (hex) and type.
    V2,
}

/// A runtime event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's name.
    pub name: String,
    /// The event's payload.
    pub payload: Vec<u8>,
}

/// Fields are in canonical order (RFC 8785): sorted by name.
#[derive(Serialize)]
struct CanonicalEvent<'a> {
    name: &'a str,
    payload: String,
    r#type: u32,
}

impl Event {
    /// Creates an event.
    #[must_use]
    pub fn new(name: &str, payload: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            payload: payload.to_vec(),
        }
    }

    /// The digest with which RTMR3 is extended.
    ///
    /// # Errors
    /// [`MockError::Evidence`] if the name cannot be written as JSON, which does not occur.
    pub fn digest(&self, version: DigestVersion) -> Result<[u8; 48], MockError> {
        let hash = Sha384::new();
        let hash = match version {
            DigestVersion::V1 => hash
                .chain_update(RUNTIME_EVENT.to_le_bytes())
                .chain_update(b":")
                .chain_update(self.name.as_bytes())
                .chain_update(b":")
                .chain_update(&self.payload),
            DigestVersion::V2 => {
                let event = CanonicalEvent {
                    name: &self.name,
                    payload: hex::encode(&self.payload),
                    r#type: RUNTIME_EVENT,
                };
                let json = serde_json::to_vec(&event)
                    .map_err(|error| MockError::Evidence(error.to_string()))?;
                hash.chain_update(json)
            }
        };
        Ok(hash.finalize().into())
    }
}

/// RTMR3 after `events`: from zeros, `SHA-384(rtmr || digest)` for each.
pub(super) fn replay(events: &[Event], version: DigestVersion) -> Result<[u8; 48], MockError> {
    let mut rtmr = [0; 48];
    for event in events {
        let digest = event.digest(version)?;
        rtmr = Sha384::new()
            .chain_update(rtmr)
            .chain_update(digest)
            .finalize()
            .into();
    }
    Ok(rtmr)
}
