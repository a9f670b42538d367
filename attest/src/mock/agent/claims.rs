//! The mock agent's claims about its TD, all derived from the same evidence.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::guest::Guest;
use crate::mock::event::replay;
use crate::mock::{MockError, Rtmr3};

/// Number of fields in app info: eight values and an empty list. [recorded from dstack 0.6.0]
const APP_INFO_FIELDS: u32 = 9;

impl Guest {
    /// The response to `Info`.
    pub(super) fn info(&self) -> Result<Value, MockError> {
        let evidence = &self.options.evidence;
        Ok(json!({
            "app_id": hex::encode(&evidence.app_id),
            "instance_id": hex::encode(&evidence.instance_id),
            "app_cert": self.own,
            "tcb_info": format!("{:#}", self.tcb_info()?),
            "app_name": self.options.app_name,
            "device_id": hex::encode(device_id()),
            "mr_aggregated": hex::encode(self.measured(4)?),
            "os_image_hash": hex::encode(&evidence.os_image_hash),
            "key_provider_info": String::from_utf8_lossy(&evidence.key_provider),
            "compose_hash": hex::encode(&evidence.compose_hash),
            "vm_config": evidence.vm_config(),
            "cloud_vendor": "",
            "cloud_product": "",
        }))
    }

    fn tcb_info(&self) -> Result<Value, MockError> {
        let evidence = &self.options.evidence;
        let [rtmr0, rtmr1, rtmr2, rtmr3] = self.rtmrs()?.map(hex::encode);
        let event_log: Value = serde_json::from_slice(&evidence.legacy_event_log()?)
            .map_err(|error| MockError::Evidence(error.to_string()))?;
        Ok(json!({
            "mrtd": hex::encode(evidence.report.mrtd),
            "rtmr0": rtmr0,
            "rtmr1": rtmr1,
            "rtmr2": rtmr2,
            "rtmr3": rtmr3,
            "mr_aggregated": hex::encode(self.measured(4)?),
            "os_image_hash": hex::encode(&evidence.os_image_hash),
            "compose_hash": hex::encode(&evidence.compose_hash),
            "device_id": hex::encode(device_id()),
            "event_log": event_log,
            "app_compose": self.options.app_compose,
        }))
    }

    fn rtmrs(&self) -> Result<[[u8; 48]; 4], MockError> {
        let evidence = &self.options.evidence;
        let [rtmr0, rtmr1, rtmr2] = evidence.report.rtmr;
        let rtmr3 = match evidence.rtmr3 {
            Rtmr3::Replayed => replay(&evidence.events(), evidence.digests)?,
            Rtmr3::Bytes(bytes) => bytes,
        };
        Ok([rtmr0, rtmr1, rtmr2, rtmr3])
    }

    /// SHA-256 over MRTD and the first `count` RTMRs.
    fn measured(&self, count: usize) -> Result<[u8; 32], MockError> {
        let mut hash = Sha256::new_with_prefix(self.options.evidence.report.mrtd);
        for rtmr in self.rtmrs()?.iter().take(count) {
            hash.update(rtmr);
        }
        Ok(hash.finalize().into())
    }

    /// The content of extension `.9`: claims about the application, in msgpack.
    pub(super) fn app_info(&self) -> Result<Vec<u8>, MockError> {
        let evidence = &self.options.evidence;
        let mut info = Vec::new();
        let encoding = |error: rmp::encode::ValueWriteError| MockError::Evidence(error.to_string());
        rmp::encode::write_array_len(&mut info, APP_INFO_FIELDS).map_err(encoding)?;
        for field in [
            &evidence.app_id[..],
            &evidence.compose_hash,
            &evidence.instance_id,
            &device_id(),
            &self.measured(3)?,
            &self.measured(4)?,
            &evidence.os_image_hash,
            &evidence.key_provider,
        ] {
            rmp::encode::write_bin(&mut info, field).map_err(encoding)?;
        }
        rmp::encode::write_array_len(&mut info, 0).map_err(encoding)?;
        Ok(info)
    }
}

/// SHA-256 of an empty PPID, as in dstack's simulator.
fn device_id() -> [u8; 32] {
    Sha256::digest([]).into()
}
