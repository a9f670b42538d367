//! The fields of the report of `/attestation` that its quote covers, and their hash.
//!
//! Without a nonce the hash is that of TeeSQL's documentation. With nonces it is over a tag and length-prefixed
//! fields, so that no choice of nonces gives the hash of a report without them, or that of other fields.
//!
//! The report must never contain a secret, since it needs no authentication.

use admin::Nonce;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::postgres::superuser::query::Unreadable;
use crate::postgres::superuser::state::PostgresState;

/// What the report data is without nonces, in words.
pub(super) const PLAIN: &str = "SHA-256(wal_lsn || controldata_hash || timestamp), then zeros";
/// The same with nonces.
pub(super) const WITH_NONCES: &str = "SHA-256(\"teesql-attestation-report-v1\" || for each of wal_lsn, controldata_hash, timestamp, mode, \
     dangerous_tdx_root, role, timeline, tls_key and each nonce: length as u32 big-endian || bytes), then zeros";
/// Starts the hash with nonces. No `wal_lsn`, which starts the other one, begins like this.
const TAG: &[u8] = b"teesql-attestation-report-v1";

/// What the report says about this process.
pub(super) struct ServiceState {
    pub(super) mode: &'static str,
    /// The fingerprint of the root in place of Intel's, if there is one.
    pub(super) dangerous_tdx_root: Option<String>,
    /// SHA-256 of the key that clients see in TLS; `None` while the process starts.
    pub(super) tls_key: Option<String>,
}

/// The fields of the report that the quote covers, formatted as in the report.
pub(super) struct ReportFields {
    wal_lsn: String,
    controldata_hash: String,
    role: &'static str,
    timeline: String,
    /// Unix time in seconds.
    pub(super) timestamp: u64,
    pub(super) service: ServiceState,
    /// `postgres_state` in the report.
    pub(super) postgres: Value,
}

impl ReportFields {
    /// A value that could not be read is null in the report, and an empty string in the report data.
    pub(super) fn new(
        state: Result<PostgresState, String>,
        service: ServiceState,
        timestamp: u64,
    ) -> Self {
        let unknown = |postgres| Self {
            wal_lsn: String::new(),
            controldata_hash: String::new(),
            role: "",
            timeline: String::new(),
            timestamp,
            service,
            postgres,
        };
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                return unknown(json!({
                    "wal_lsn": null,
                    "controldata_hash": null,
                    "controldata_source": null,
                    "pg_version": null,
                    "in_recovery": null,
                    "role": null,
                    "timeline": null,
                    "error": error,
                }));
            }
        };
        let mut errors = Vec::new();
        let wal_lsn = read(state.wal_lsn, &mut errors);
        let pg_version = read(state.pg_version, &mut errors);
        let (hash, source) = match state.controldata {
            Ok(data) => (Some(data.hash), Some(data.source.name())),
            Err(error) => (read(Err(error), &mut errors), None),
        };
        let in_recovery = read(state.in_recovery, &mut errors);
        let timeline = read(state.timeline, &mut errors);
        let role = in_recovery.map(|standby| if standby { "standby" } else { "primary" });
        let postgres = json!({
            "wal_lsn": wal_lsn,
            "controldata_hash": hash,
            "controldata_source": source,
            "pg_version": pg_version,
            "in_recovery": in_recovery,
            "role": role,
            "timeline": timeline,
            "error": (!errors.is_empty()).then(|| errors.join("; ")),
        });
        Self {
            wal_lsn: wal_lsn.unwrap_or_default(),
            controldata_hash: hash.unwrap_or_default(),
            role: role.unwrap_or_default(),
            timeline: timeline
                .map(|timeline| timeline.to_string())
                .unwrap_or_default(),
            ..unknown(postgres)
        }
    }

    /// The first 32 of the 64 bytes of report data. The guest agent appends zeros.
    pub(super) fn report_data(&self, nonces: &[Nonce]) -> [u8; 32] {
        let timestamp = self.timestamp.to_string();
        let mut hash = Sha256::new();
        if nonces.is_empty() {
            hash.update(&self.wal_lsn);
            hash.update(&self.controldata_hash);
            hash.update(&timestamp);
            return hash.finalize().into();
        }
        hash.update(TAG);
        let fields = [
            &*self.wal_lsn,
            &self.controldata_hash,
            &timestamp,
            self.service.mode,
            self.service
                .dangerous_tdx_root
                .as_deref()
                .unwrap_or_default(),
            self.role,
            &self.timeline,
            self.service.tls_key.as_deref().unwrap_or_default(),
        ];
        let fields = fields.into_iter().map(str::as_bytes);
        for field in fields.chain(nonces.iter().map(Nonce::as_bytes)) {
            hash.update(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
            hash.update(field);
        }
        hash.finalize().into()
    }
}

/// The value, or else its error in `errors`.
fn read<T>(value: Result<T, Unreadable>, errors: &mut Vec<String>) -> Option<T> {
    match value {
        Ok(value) => Some(value),
        Err(error) => {
            errors.push(error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> ReportFields {
        let service = ServiceState {
            mode: "production",
            dangerous_tdx_root: None,
            tls_key: Some("f1".repeat(32)),
        };
        ReportFields {
            wal_lsn: "0/16B3748".to_owned(),
            controldata_hash: "c0".repeat(32),
            role: "primary",
            timeline: "1".to_owned(),
            ..ReportFields::new(Err("down".to_owned()), service, 1_713_312_000)
        }
    }

    fn nonce(digits: &str) -> Nonce {
        Nonce::from_hex(digits).unwrap()
    }

    #[test]
    fn without_a_nonce_it_is_the_hash_of_the_documentation() {
        let text = format!("0/16B3748{}1713312000", "c0".repeat(32));
        let expected: [u8; 32] = Sha256::digest(text).into();
        assert_eq!(fields().report_data(&[]), expected);
    }

    #[test]
    fn with_nonces_the_hash_covers_each_field() {
        let mut encoded = b"teesql-attestation-report-v1".to_vec();
        let hash = "c0".repeat(32);
        let key = "f1".repeat(32);
        for field in [
            &b"0/16B3748"[..],
            hash.as_bytes(),
            b"1713312000",
            b"production",
            b"",
            b"primary",
            b"1",
            key.as_bytes(),
            &[0xab; 2],
            &[7],
        ] {
            encoded.extend([0, 0, 0, u8::try_from(field.len()).unwrap()]);
            encoded.extend(field);
        }
        let expected: [u8; 32] = Sha256::digest(encoded).into();
        let nonces = [nonce("abab"), nonce("07")];
        assert_eq!(fields().report_data(&nonces), expected);

        let changes: [fn(&mut ReportFields); 8] = [
            |fields| fields.wal_lsn.push('0'),
            |fields| fields.controldata_hash.push('0'),
            |fields| fields.timestamp += 1,
            |fields| fields.service.mode = "simulator",
            |fields| fields.service.dangerous_tdx_root = Some("0".to_owned()),
            |fields| fields.role = "standby",
            |fields| fields.timeline.push('0'),
            |fields| fields.service.tls_key = None,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut other = fields();
            change(&mut other);
            assert_ne!(other.report_data(&nonces), expected, "{number}");
        }
        for other in [
            &[nonce("abab")][..],
            &[nonce("ab"), nonce("ab07")],
            &[nonce("ab"), nonce("ab"), nonce("07")],
            &[nonce("07"), nonce("abab")],
        ] {
            assert_ne!(fields().report_data(other), expected, "{other:?}");
        }
    }

    /// Before, the nonce was appended: the digits of a later time were a nonce.
    #[test]
    fn no_nonce_passes_for_a_report_without_one() {
        let mut early = fields();
        early.timestamp = 171_331;
        let nonce = Nonce::from_hex(&hex::encode("2000")).unwrap();
        assert_ne!(early.report_data(&[nonce]), fields().report_data(&[]));
    }
}
