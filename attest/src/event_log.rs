//! dstack's runtime events: their digests, the replay of RTMR3, and the identity that it proves.
//!
//! A log proves nothing until replaying its digests (extending a register of zeros with each) gives the RTMR3 of
//! a verified quote. Then it is complete and in order, and the events before `system-ready`, which the *system*
//! wrote, are true. Later events come from the application, which may write anything, a second `app-id`
//! included: they are hashed and otherwise ignored. A log without `system-ready` proves no identity, since the
//! end of the system's part is unknown.
//!
//! RTMR0 to RTMR2 are not replayed, since dstack strips their events from the certificate. They are compared
//! with allow-lists instead.

use std::borrow::Cow;

use serde::Serialize;
use sha2::{Digest, Sha384};

use crate::denial::Denial;
pub use crate::limits::{MAX_EVENT_NAME_LEN, MAX_EVENT_PAYLOAD_LEN, MAX_EVENTS};
use crate::values::{AppId, ComposeHash, InstanceId, OsImageHash, Rtmr};

/// The type of dstack's runtime events. [dstack `cc-eventlog/src/runtime_events.rs`]
pub const RUNTIME_EVENT_TYPE: u32 = 0x0800_0001;

/// The event after which the application writes.
const SYSTEM_READY: &str = "system-ready";

/// How an event is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestVersion {
    /// `SHA-384(type as u32 LE || ":" || name || ":" || payload)`.
    #[default]
    V1,
    /// `SHA-384` of canonical JSON (RFC 8785): `{"name":…,"payload":<hex>,"type":134217729}`.
    V2,
}

impl DigestVersion {
    /// The version with this number.
    pub(crate) fn from_number(number: u64) -> Result<Self, Denial> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            _ => Err(Denial::MalformedEvidence("an event has an unknown version")),
        }
    }
}

/// One runtime event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    name: Cow<'a, str>,
    payload: Cow<'a, [u8]>,
    version: DigestVersion,
}

/// The canonical JSON of [`DigestVersion::V2`].
#[derive(Serialize)]
struct Canonical<'a> {
    name: &'a str,
    payload: String,
    #[serde(rename = "type")]
    event_type: u32,
}

impl<'a> Event<'a> {
    /// An event within the caps.
    ///
    /// # Errors
    /// [`Denial::MalformedEvidence`] beyond [`MAX_EVENT_NAME_LEN`] or [`MAX_EVENT_PAYLOAD_LEN`].
    pub fn new(
        name: impl Into<Cow<'a, str>>,
        payload: impl Into<Cow<'a, [u8]>>,
        version: DigestVersion,
    ) -> Result<Self, Denial> {
        let (name, payload) = (name.into(), payload.into());
        if name.len() > MAX_EVENT_NAME_LEN || payload.len() > MAX_EVENT_PAYLOAD_LEN {
            return Err(Denial::MalformedEvidence("an event is too large"));
        }
        Ok(Self {
            name,
            payload,
            version,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The digest that RTMR3 is extended with.
    ///
    /// # Errors
    /// [`Denial::MalformedEvidence`] if the canonical JSON cannot be written; a string and a number
    /// always can.
    pub fn digest(&self) -> Result<[u8; 48], Denial> {
        match self.version {
            DigestVersion::V1 => {
                let mut hash = Sha384::new();
                hash.update(RUNTIME_EVENT_TYPE.to_le_bytes());
                hash.update(b":");
                hash.update(self.name.as_bytes());
                hash.update(b":");
                hash.update(&self.payload);
                Ok(hash.finalize().into())
            }
            DigestVersion::V2 => {
                let canonical = Canonical {
                    name: &self.name,
                    payload: hex::encode(&self.payload),
                    event_type: RUNTIME_EVENT_TYPE,
                };
                let json = serde_jcs::to_vec(&canonical)
                    .map_err(|_| Denial::MalformedEvidence("an event has no canonical JSON"))?;
                Ok(Sha384::digest(json).into())
            }
        }
    }

    fn into_owned(self) -> Event<'static> {
        Event {
            name: Cow::Owned(self.name.into_owned()),
            payload: Cow::Owned(self.payload.into_owned()),
            version: self.version,
        }
    }
}

/// A log that has not been replayed: all of it is only claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventLog<'a>(Vec<Event<'a>>);

impl<'a> EventLog<'a> {
    /// An empty log with capacity for `count` events.
    ///
    /// # Errors
    /// [`Denial::MalformedEvidence`] for more than [`MAX_EVENTS`].
    pub fn with_capacity(count: usize) -> Result<Self, Denial> {
        check_count(count)?;
        Ok(Self(Vec::with_capacity(count)))
    }

    /// Adds an event.
    ///
    /// # Errors
    /// [`Denial::MalformedEvidence`] beyond [`MAX_EVENTS`].
    pub fn push(&mut self, event: Event<'a>) -> Result<(), Denial> {
        check_count(self.0.len() + 1)?;
        self.0.push(event);
        Ok(())
    }

    /// The events, in order.
    #[must_use]
    pub fn events(&self) -> &[Event<'a>] {
        &self.0
    }

    /// The RTMR3 that this log gives: `m = SHA-384(m || digest)` for each event, starting with 48 zero bytes.
    ///
    /// # Errors
    /// As [`Event::digest`].
    pub fn replay(&self) -> Result<Rtmr, Denial> {
        self.0
            .iter()
            .try_fold([0; 48], |register, event| {
                let extended = Sha384::new()
                    .chain_update(register)
                    .chain_update(event.digest()?);
                Ok(extended.finalize().into())
            })
            .map(Rtmr)
    }

    /// Replays the log, compares the result with a quote's RTMR3, and returns the identity that the log proves.
    ///
    /// # Errors
    /// [`Denial::EventLogMismatch`]; [`Denial::MalformedEvidence`] if an identity event in the system's part is
    /// repeated, which would be ambiguous, or has a wrong length.
    pub fn prove(&self, rtmr3: Rtmr) -> Result<Identity, Denial> {
        if self.replay()? != rtmr3 {
            return Err(Denial::EventLogMismatch);
        }
        match self.0.iter().position(|event| event.name == SYSTEM_READY) {
            Some(ready) => Identity::read(self.0.iter().take(ready)),
            None => Ok(Identity::default()),
        }
    }

    pub(crate) fn into_owned(self) -> EventLog<'static> {
        EventLog(self.0.into_iter().map(Event::into_owned).collect())
    }
}

/// Refuses more than [`MAX_EVENTS`].
pub(crate) fn check_count(count: usize) -> Result<(), Denial> {
    if count > MAX_EVENTS {
        return Err(Denial::MalformedEvidence("there are too many events"));
    }
    Ok(())
}

/// The identity of a TD, as its system wrote it into RTMR3 before the application started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    app_id: Option<AppId>,
    compose_hash: Option<ComposeHash>,
    instance_id: Option<InstanceId>,
    os_image_hash: Option<OsImageHash>,
    key_provider: Option<Box<str>>,
}

impl Identity {
    fn read<'e>(events: impl Iterator<Item = &'e Event<'e>>) -> Result<Self, Denial> {
        let mut identity = Self::default();
        for event in events {
            match event.name() {
                "app-id" => once(
                    &mut identity.app_id,
                    value(event, "app-id is not 20 bytes")?,
                )?,
                "compose-hash" => {
                    once(
                        &mut identity.compose_hash,
                        value(event, "compose-hash is not 32 bytes")?,
                    )?;
                }
                "os-image-hash" => {
                    once(
                        &mut identity.os_image_hash,
                        value(event, "os-image-hash is not 32 bytes")?,
                    )?;
                }
                // Of an application without instance ids the payload is empty.
                "instance-id" if event.payload().is_empty() => {}
                "instance-id" => {
                    once(
                        &mut identity.instance_id,
                        value(event, "instance-id is not 20 bytes")?,
                    )?;
                }
                "key-provider" => {
                    let text = std::str::from_utf8(event.payload())
                        .map_err(|_| Denial::MalformedEvidence("key-provider is not UTF-8"))?;
                    once(&mut identity.key_provider, text.into())?;
                }
                _ => {}
            }
        }
        Ok(identity)
    }

    /// The app id.
    #[must_use]
    pub fn app_id(&self) -> Option<AppId> {
        self.app_id
    }

    /// The compose hash.
    #[must_use]
    pub fn compose_hash(&self) -> Option<ComposeHash> {
        self.compose_hash
    }

    /// The instance id.
    #[must_use]
    pub fn instance_id(&self) -> Option<InstanceId> {
        self.instance_id
    }

    /// The OS image hash.
    #[must_use]
    pub fn os_image_hash(&self) -> Option<OsImageHash> {
        self.os_image_hash
    }

    /// The key provider of the TD: JSON such as `{"name":"kms","id":"<public key in hex>"}`.
    #[must_use]
    pub fn key_provider(&self) -> Option<&str> {
        self.key_provider.as_deref()
    }
}

fn value<'e, T: TryFrom<&'e [u8]>>(event: &'e Event<'_>, wrong: &'static str) -> Result<T, Denial> {
    event
        .payload()
        .try_into()
        .map_err(|_| Denial::MalformedEvidence(wrong))
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Denial> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Denial::MalformedEvidence(
            "an identity event is there twice before system-ready",
        )),
    }
}
