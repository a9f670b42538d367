//! A guest's evidence, in each of dstack's envelopes.
//!
//! The formats are those recorded from dstack 0.6.0 and those of its sources
//! (`dstack-attest/src/v1.rs`, `cc-eventlog`). The attestation in a certificate is "stripped": its runtime
//! events have no digests.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parity_scale_codec::Encode;
use serde::{Serialize, Serializer};

use super::event::{RUNTIME_EVENT, replay};
use super::{DigestVersion, Event, Key, MockError, Platform, SYSTEM_READY, TdReport};

/// The certificate extensions that carry the evidence, and their encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Envelope {
    /// `.8`, SCALE.
    V0,
    /// `.8`, msgpack: dstack 0.6.
    #[default]
    V1,
    /// `.1` and `.2`: the bare quote, and the event log in JSON.
    Legacy,
    /// `.1`, `.2` and `.8` in V1.
    Both,
    /// None: an ordinary certificate.
    None,
}

/// How V1 encodes event payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PayloadForm {
    /// As msgpack bin. [recorded from dstack 0.6.0]
    #[default]
    Bin,
    /// In runtime events as base64 text. [later dstack sources]
    Base64,
}

/// The report data of the quote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Bound to the certificate's key, as it must be.
    #[default]
    Own,
    /// Any other 64 bytes, such as another key's ([`Key::report_data`]).
    Bytes([u8; 64]),
}

/// RTMR3 of the quote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rtmr3 {
    /// The replay of the events, as it must be.
    #[default]
    Replayed,
    /// Any other value.
    Bytes([u8; 48]),
}

/// A guest's evidence.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Envelope of the certificate.
    pub envelope: Envelope,
    /// Payload of `app-id`: 20 bytes.
    pub app_id: Vec<u8>,
    /// Payload of `compose-hash`: 32 bytes.
    pub compose_hash: Vec<u8>,
    /// Payload of `instance-id`: 20 bytes.
    pub instance_id: Vec<u8>,
    /// Payload of `os-image-hash`: 32 bytes.
    pub os_image_hash: Vec<u8>,
    /// Payload of `key-provider`: JSON.
    pub key_provider: Vec<u8>,
    /// Events just before `system-ready`.
    pub before_ready: Vec<Event>,
    /// Whether the log has a `system-ready` event.
    pub ready: bool,
    /// Events after `system-ready`, which come from the application.
    pub after_ready: Vec<Event>,
    /// How event digests are computed, and the version in V1's runtime events.
    pub digests: DigestVersion,
    /// How V1 encodes payloads.
    pub payloads: PayloadForm,
    /// RTMR3 of the quote.
    pub rtmr3: Rtmr3,
    /// Report data of the quote.
    pub binding: Binding,
    /// The rest of the report. `rtmr3` and `binding` override its RTMR3 and report data.
    pub report: TdReport,
}

impl Default for Evidence {
    /// A guest without faults, in V1.
    fn default() -> Self {
        Self {
            envelope: Envelope::default(),
            app_id: vec![0xa1; 20],
            compose_hash: vec![0xc0; 32],
            instance_id: vec![0x1d; 20],
            os_image_hash: vec![0x05; 32],
            key_provider: br#"{"name":"kms","id":"mock"}"#.to_vec(),
            before_ready: Vec::new(),
            ready: true,
            after_ready: Vec::new(),
            digests: DigestVersion::default(),
            payloads: PayloadForm::default(),
            rtmr3: Rtmr3::default(),
            binding: Binding::default(),
            report: TdReport::default(),
        }
    }
}

/// A boot event as in a stripped log: with a digest and without payload.
const ACPI_DATA: (u32, u32, [u8; 48]) = (0, 10, [0xac; 48]);

impl Evidence {
    /// All runtime events, in the order of a dstack guest.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = vec![
            Event::new("system-preparing", b""),
            Event::new("app-id", &self.app_id),
            Event::new("compose-hash", &self.compose_hash),
            Event::new("instance-id", &self.instance_id),
            Event::new("boot-mr-done", b""),
            Event::new("os-image-hash", &self.os_image_hash),
            Event::new("key-provider", &self.key_provider),
            Event::new("storage-fs", b"zfs"),
        ];
        events.extend_from_slice(&self.before_ready);
        if self.ready {
            events.push(Event::new(SYSTEM_READY, b""));
        }
        events.extend_from_slice(&self.after_ready);
        events
    }

    /// Makes a quote over this evidence for a certificate of `key`.
    ///
    /// # Errors
    /// [`MockError`], which does not occur.
    pub fn quote(&self, platform: &Platform, key: &Key) -> Result<Vec<u8>, MockError> {
        let report_data = match &self.binding {
            Binding::Own => key.report_data(),
            Binding::Bytes(bytes) => *bytes,
        };
        let rtmr3 = match &self.rtmr3 {
            Rtmr3::Replayed => replay(&self.events(), self.digests)?,
            Rtmr3::Bytes(bytes) => *bytes,
        };
        platform.quote(&TdReport {
            report_data,
            rtmr3,
            ..self.report.clone()
        })
    }

    /// The content of `.8` in V0: SCALE.
    ///
    /// Like dstack's, it has no field for the version of event digests.
    #[must_use]
    pub fn v0(&self, quote: &[u8], report_data: [u8; 64]) -> Vec<u8> {
        let (imr, kind, digest) = ACPI_DATA;
        let mut log = vec![(imr, kind, digest.to_vec(), String::new(), Vec::<u8>::new())];
        let events = self.events();
        log.extend(events.iter().map(|event| {
            (
                3u32,
                RUNTIME_EVENT,
                Vec::new(),
                event.name.clone(),
                event.payload.clone(),
            )
        }));
        let runtime: Vec<_> = events
            .into_iter()
            .map(|event| (event.name, event.payload))
            .collect();
        // Version 0, platform TDX.
        (0u8, 0u8, quote, log, runtime, report_data, self.config()).encode()
    }

    /// The content of `.8` in V1: msgpack.
    ///
    /// # Errors
    /// [`MockError::Evidence`] if it cannot be encoded, which does not occur.
    pub fn v1(&self, quote: &[u8], report_data: [u8; 64]) -> Result<Vec<u8>, MockError> {
        let (imr, event_type, digest) = ACPI_DATA;
        let mut event_log = vec![LogEvent {
            imr,
            event_type,
            digest: Bin(&digest),
            event: "",
            event_payload: Bin(&[]),
        }];
        let events = self.events();
        event_log.extend(events.iter().map(LogEvent::runtime));
        let version = (self.digests == DigestVersion::V2).then_some(2);
        let runtime_events = events
            .iter()
            .map(|event| RuntimeEvent {
                event: &event.name,
                payload: match self.payloads {
                    PayloadForm::Bin => Payload::Bin(Bin(&event.payload)),
                    PayloadForm::Base64 => Payload::Text(BASE64_STANDARD.encode(&event.payload)),
                },
                version,
            })
            .collect();
        let stack = StackEvidence {
            report_data: report_data.to_vec(),
            runtime_events,
            config: self.config(),
        };
        let attestation = Attestation {
            version: 1,
            platform: Tagged {
                kind: "tdx",
                data: PlatformEvidence { quote, event_log },
            },
            stack: Tagged {
                kind: "dstack",
                data: stack,
            },
        };
        rmp_serde::to_vec_named(&attestation).map_err(|e| MockError::Evidence(e.to_string()))
    }

    /// The content of `.2`: the event log in JSON, with digests, bytes as hex.
    ///
    /// # Errors
    /// [`MockError::Evidence`] if it cannot be encoded, which does not occur.
    pub fn legacy_event_log(&self) -> Result<Vec<u8>, MockError> {
        let log = self
            .events()
            .iter()
            .map(|event| {
                Ok(serde_json::json!({
                    "imr": 3,
                    "event_type": RUNTIME_EVENT,
                    "digest": hex::encode(event.digest(self.digests)?),
                    "event": event.name,
                    "event_payload": hex::encode(&event.payload),
                }))
            })
            .collect::<Result<Vec<_>, MockError>>()?;
        serde_json::to_vec(&log).map_err(|e| MockError::Evidence(e.to_string()))
    }

    /// The VM's configuration in JSON.
    pub(super) fn vm_config(&self) -> String {
        let image = hex::encode(&self.os_image_hash);
        format!(r#"{{"os_image_hash":"{image}","cpu_count":2}}"#)
    }

    fn config(&self) -> String {
        serde_json::json!({ "vm_config": self.vm_config() }).to_string()
    }
}

#[derive(Serialize)]
struct Attestation<'a> {
    version: u64,
    platform: Tagged<PlatformEvidence<'a>>,
    stack: Tagged<StackEvidence<'a>>,
}

#[derive(Serialize)]
struct Tagged<T> {
    kind: &'static str,
    data: T,
}

#[derive(Serialize)]
struct PlatformEvidence<'a> {
    /// serde encodes a slice of `u8` as an array of integers, and so does dstack.
    quote: &'a [u8],
    event_log: Vec<LogEvent<'a>>,
}

#[derive(Serialize)]
struct StackEvidence<'a> {
    report_data: Vec<u8>,
    runtime_events: Vec<RuntimeEvent<'a>>,
    config: String,
}

#[derive(Serialize)]
struct LogEvent<'a> {
    imr: u32,
    event_type: u32,
    digest: Bin<'a>,
    event: &'a str,
    event_payload: Bin<'a>,
}

impl<'a> LogEvent<'a> {
    fn runtime(event: &'a Event) -> Self {
        Self {
            imr: 3,
            event_type: RUNTIME_EVENT,
            digest: Bin(&[]),
            event: &event.name,
            event_payload: Bin(&event.payload),
        }
    }
}

#[derive(Serialize)]
struct RuntimeEvent<'a> {
    event: &'a str,
    payload: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u8>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Bin(Bin<'a>),
    Text(String),
}

/// Bytes, encoded as msgpack bin.
struct Bin<'a>(&'a [u8]);

impl Serialize for Bin<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
