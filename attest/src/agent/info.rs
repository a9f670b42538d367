//! The guest agent's description of this TD and of itself (`Info`, `Version`).

use super::AgentError;
use super::pem::certificates;
use super::response::ResponseFields;
use crate::limits::{MAX_AGENT_RESPONSE_LEN, MAX_AGENT_TEXT_LEN};
use crate::values::{AppId, ComposeHash, InstanceId, Mrtd, OsImageHash, Rtmr};

/// The identity of this TD as the agent claims it. Only a quote with its event log proves it.
#[derive(Clone, Debug)]
pub struct Info {
    /// The application's id.
    pub app_id: AppId,
    /// The instance's id; `None` for an application without instance ids.
    pub instance_id: Option<InstanceId>,
    /// The application's name.
    pub app_name: String,
    /// SHA-256 of the compose file.
    pub compose_hash: ComposeHash,
    /// SHA-256 of the OS image, if the agent knows it.
    pub os_image_hash: Option<OsImageHash>,
    /// The device's id, in hex.
    pub device_id: String,
    /// A hash over all measurements, in hex.
    pub mr_aggregated: String,
    /// The key provider, as JSON.
    pub key_provider_info: String,
    /// The VM's configuration, as JSON.
    pub vm_config: String,
    /// The cloud vendor, if the agent knows it.
    pub cloud_vendor: String,
    /// The cloud vendor's product.
    pub cloud_product: String,
    /// The agent's own certificate in DER, followed by its issuers. Empty if it has none.
    pub app_cert: Vec<Vec<u8>>,
    /// The measurements; `None` if the application does not publish them (`public_tcbinfo`).
    pub tcb_info: Option<TcbInfo>,
}

/// The TD's measurements as the agent claims them.
#[derive(Clone, Debug)]
pub struct TcbInfo {
    /// MRTD.
    pub mrtd: Mrtd,
    /// RTMR0 to RTMR3.
    pub rtmrs: [Rtmr; 4],
    /// SHA-256 of the compose file.
    pub compose_hash: Option<ComposeHash>,
    /// SHA-256 of the OS image.
    pub os_image_hash: Option<OsImageHash>,
    /// The event log: a JSON array, as the agent wrote it.
    pub event_log: String,
    /// The compose file.
    pub app_compose: String,
}

/// The version of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// dstack's version.
    pub version: String,
    /// The revision it was built from.
    pub rev: String,
}

impl Info {
    pub(super) fn from_response(response: &ResponseFields<'_>) -> Result<Self, AgentError> {
        let text = |field| response.text_or_empty(field, MAX_AGENT_TEXT_LEN);
        Ok(Self {
            app_id: response.hex_value("app_id")?,
            instance_id: response.optional_hex_value("instance_id")?,
            app_name: text("app_name")?,
            compose_hash: response.hex_value("compose_hash")?,
            os_image_hash: response.optional_hex_value("os_image_hash")?,
            device_id: text("device_id")?,
            mr_aggregated: text("mr_aggregated")?,
            key_provider_info: text("key_provider_info")?,
            vm_config: text("vm_config")?,
            cloud_vendor: text("cloud_vendor")?,
            cloud_product: text("cloud_product")?,
            app_cert: app_cert(response)?,
            tcb_info: TcbInfo::from_response(response)?,
        })
    }
}

impl TcbInfo {
    fn from_response(info: &ResponseFields<'_>) -> Result<Option<Self>, AgentError> {
        let json = info.text_or_empty("tcb_info", MAX_AGENT_RESPONSE_LEN)?;
        if json.is_empty() {
            return Ok(None);
        }
        let tcb = info.nested("tcb_info", &json)?;
        let event_log = tcb.raw("tcb_info.event_log").unwrap_or("[]");
        if !event_log.starts_with('[') {
            return Err(tcb.malformed("tcb_info.event_log", "is not a list"));
        }
        Ok(Some(Self {
            mrtd: tcb.hex_value("tcb_info.mrtd")?,
            rtmrs: [
                tcb.hex_value("tcb_info.rtmr0")?,
                tcb.hex_value("tcb_info.rtmr1")?,
                tcb.hex_value("tcb_info.rtmr2")?,
                tcb.hex_value("tcb_info.rtmr3")?,
            ],
            compose_hash: tcb.optional_hex_value("tcb_info.compose_hash")?,
            os_image_hash: tcb.optional_hex_value("tcb_info.os_image_hash")?,
            event_log: event_log.to_owned(),
            app_compose: tcb.text_or_empty("tcb_info.app_compose", MAX_AGENT_RESPONSE_LEN)?,
        }))
    }
}

impl Version {
    pub(super) fn from_response(response: &ResponseFields<'_>) -> Result<Self, AgentError> {
        Ok(Self {
            version: response.text("version", MAX_AGENT_TEXT_LEN)?,
            rev: response.text_or_empty("rev", MAX_AGENT_TEXT_LEN)?,
        })
    }
}

fn app_cert(response: &ResponseFields<'_>) -> Result<Vec<Vec<u8>>, AgentError> {
    let pem = response.text_or_empty("app_cert", MAX_AGENT_RESPONSE_LEN)?;
    if pem.is_empty() {
        return Ok(Vec::new());
    }
    certificates(response, "app_cert", [pem])
}
