//! Policies, identities and settings, from objects whose types JavaScript has checked.

use std::time::Duration;

use napi::bindgen_prelude::Buffer;
use napi_derive::napi;
use teesql::{Builder, Error, Identity, ManifestSigner, Policy};

/// A setting by its name in the configuration file.
#[napi(object)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// A policy: one rule for each allowed value, and settings.
#[napi(object)]
pub struct PolicyRules {
    /// Whether the settings in the environment apply. Forwarders do not use it: their own settings have it.
    pub env: Option<bool>,
    pub rules: Vec<Setting>,
    pub settings: Vec<Setting>,
}

impl PolicyRules {
    pub(crate) fn into_policy(self) -> Policy {
        let policy = if self.env == Some(true) {
            Policy::from_env()
        } else {
            Policy::new()
        };
        let policy = self.rules.into_iter().fold(policy, rule);
        let settings = self.settings.into_iter();
        settings.fold(policy, |policy, setting| {
            policy.setting(setting.name, setting.value)
        })
    }
}

fn rule(policy: Policy, rule: Setting) -> Policy {
    let value = rule.value;
    match rule.name.as_str() {
        "file" => policy.file(value),
        "mrtd" => policy.mrtd(value),
        "rtmr0" => policy.rtmr0(value),
        "rtmr1" => policy.rtmr1(value),
        "rtmr2" => policy.rtmr2(value),
        "rtmr3" => policy.rtmr3(value),
        "app-id" => policy.app_id(value),
        "compose-hash" => policy.compose_hash(value),
        "instance-id" => policy.instance_id(value),
        "os-image-hash" => policy.os_image_hash(value),
        "accept-tcb-status" => policy.accept_tcb_status(value),
        "allow-debug-td" => policy.allow_debug_td(),
        "allow-any-server" => policy.allow_any_server(),
        "allow-simulator" => policy.allow_simulator(),
        // Refused as an unknown setting: a rule must not be ignored.
        other => policy.setting(other, value),
    }
}

/// A client certificate: `kind` and what belongs to it.
#[napi(object)]
pub struct IdentityParts {
    pub kind: String,
    pub address: Option<String>,
    pub certificate: Option<Buffer>,
    pub key: Option<Buffer>,
    pub certificate_file: Option<String>,
    pub key_file: Option<String>,
}

impl IdentityParts {
    pub(crate) fn into_identity(self) -> Identity {
        match self.kind.as_str() {
            "none" => Identity::none(),
            "guest-agent-at" => Identity::guest_agent_at(self.address.unwrap_or_default()),
            "pem" => Identity::pem(bytes(self.certificate), bytes(self.key)),
            "files" => Identity::pem_files(
                self.certificate_file.unwrap_or_default(),
                self.key_file.unwrap_or_default(),
            ),
            _ => Identity::guest_agent(),
        }
    }
}

fn bytes(buffer: Option<Buffer>) -> Vec<u8> {
    buffer.map(|buffer| buffer.to_vec()).unwrap_or_default()
}

#[napi(object)]
pub struct ClusterParts {
    pub domain: String,
    pub signer: Buffer,
}

/// The options of `forward`. Times are in milliseconds.
#[napi(object)]
pub struct StartSettings {
    pub env: bool,
    pub url: Option<String>,
    pub target: Option<String>,
    pub cluster: Option<ClusterParts>,
    pub identity: Option<IdentityParts>,
    pub policy: Option<PolicyRules>,
    pub verifier_instead_of_dcap: bool,
    pub verifier_timeout: Option<u32>,
    pub connect_timeout: Option<u32>,
    pub start_timeout: Option<u32>,
    pub drain_timeout: Option<u32>,
    pub settings: Vec<Setting>,
}

type SetTime = fn(Builder, Duration) -> Builder;

impl StartSettings {
    /// All but the verifier.
    ///
    /// # Errors
    /// The signer does not have 20 bytes.
    pub(crate) fn into_builder(self) -> Result<Builder, Error> {
        let mut builder = if self.env {
            teesql::Forwarder::from_env()
        } else {
            teesql::Forwarder::builder()
        };
        if let Some(url) = self.url {
            builder = builder.url(url);
        }
        if let Some(target) = self.target {
            builder = builder.target(target);
        }
        if let Some(cluster) = self.cluster {
            builder = builder.cluster(cluster.domain, signer(&cluster.signer)?);
        }
        if let Some(identity) = self.identity {
            builder = builder.identity(identity.into_identity());
        }
        if let Some(policy) = self.policy {
            builder = builder.policy(policy.into_policy());
        }
        let times: [(_, SetTime); 4] = [
            (self.verifier_timeout, Builder::verifier_timeout),
            (self.connect_timeout, Builder::connect_timeout),
            (self.start_timeout, Builder::start_timeout),
            (self.drain_timeout, Builder::drain_timeout),
        ];
        for (milliseconds, set) in times {
            if let Some(time) = milliseconds.map(duration) {
                builder = set(builder, time);
            }
        }
        let settings = self.settings.into_iter();
        Ok(settings.fold(builder, |builder, setting| {
            builder.setting(setting.name, setting.value)
        }))
    }
}

pub(crate) fn duration(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into())
}

/// # Errors
/// There are not 20 bytes.
pub(crate) fn signer(bytes: &[u8]) -> Result<ManifestSigner, Error> {
    match <[u8; 20]>::try_from(bytes) {
        Ok(address) => Ok(ManifestSigner::from(address)),
        Err(_) => "".parse(),
    }
}
