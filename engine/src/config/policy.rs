//! The configuration of the policy for peers: the policy file or the flat settings, and the rule that what a guest
//! says of itself is accepted only if its operating system is known.
//!
//! RTMR3, and with it app id, compose hash, OS image hash and instance id, is written by software in the guest. It is
//! as true as the firmware and the kernel that write it, or as the KMS that refuses its keys to other images.

use std::path::{Path, PathBuf};

use attest::chain::{KmsRoot, MAX_ROOTS_LEN};
use attest::policy::file::{self, Context};
use attest::policy::{KmsRootPin, PeerEntry, Policy, Settings};

use super::reader::Reader;
use super::settings;
use crate::auth::role::Role;

/// The roles of an entry that names none.
const DEFAULT_ROLES: [&str; 2] = ["teesql_read", "teesql_readwrite"];

/// The value of the setting `kms_root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KmsRootSetting {
    /// `own` where it is possible and nothing else says which operating systems are known.
    Auto,
    /// As it says.
    Pin(KmsRootPin),
}

/// What a policy is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The sidecar verifies clients, if that is required.
    Clients { required: bool },
    /// The forwarder verifies servers, in production: without `allow_simulator`.
    Servers { production: bool, allow_any: bool },
    /// `verify` shows a verdict.
    Inspection,
}

/// Whether `kms_root = own` has a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnRoot {
    /// The guest agent issues this process' certificate, and its chain ends in the root.
    FromAgent,
    /// The certificate comes from files.
    NoAgent,
    /// The key of a simulator's CA is public.
    Simulator,
    /// The guest agent is asked if the configuration says `own`, and is not the default.
    OnRequest,
}

impl OwnRoot {
    pub(super) fn new(reader: &Reader<'_>, from_agent: bool) -> Self {
        match (reader.simulator_mode(), from_agent) {
            (true, _) => Self::Simulator,
            (false, true) => Self::FromAgent,
            (false, false) => Self::NoAgent,
        }
    }

    /// For `verify`, which often runs on a machine without a guest agent.
    pub(super) fn on_request(reader: &Reader<'_>) -> Self {
        if reader.simulator_mode() {
            Self::Simulator
        } else {
            Self::OnRequest
        }
    }

    fn default_pin(self) -> KmsRootPin {
        match self {
            Self::FromAgent => KmsRootPin::Own,
            Self::NoAgent | Self::Simulator | Self::OnRequest => KmsRootPin::Any,
        }
    }
}

/// Reads the policy, and checks that it can be believed.
pub(super) fn read(reader: &mut Reader<'_>, purpose: Purpose, own: OwnRoot) -> Option<Policy> {
    let file = reader.read_optional(&settings::POLICY_FILE);
    let flat = read_settings(reader);
    let (mut settings, kms_root) = flat?;
    let file = file?;
    if let Some(path) = &file {
        let only_file = refuse_flat_settings(reader);
        settings.peers = read_file(reader, path, own)?;
        only_file?;
    }
    settings.kms_root = match kms_root {
        KmsRootSetting::Pin(pin) => pin,
        KmsRootSetting::Auto => default_kms_root(&settings, own),
    };
    let policy = Policy::new(settings);
    let is_used = match purpose {
        Purpose::Clients { required: used }
        | Purpose::Servers {
            production: used, ..
        } => used,
        Purpose::Inspection => false,
    };
    if is_used {
        check_operating_systems(reader, &policy, file.as_deref());
        check_dates(reader, &policy);
    }
    if let Purpose::Servers {
        production: true,
        allow_any: false,
    } = purpose
    {
        check_server_is_named(reader, &policy, file.as_deref());
    }
    if is_used || purpose == Purpose::Inspection {
        check_own_root(reader, &policy, own);
    }
    Some(policy)
}

/// The flat settings, with `kms_root` as it is written.
fn read_settings(reader: &mut Reader<'_>) -> Option<(Settings, KmsRootSetting)> {
    let mrtd = reader.read(&settings::ALLOWED_MRTD);
    let [rtmr0, rtmr1, rtmr2, rtmr3] = [
        &settings::ALLOWED_RTMR0,
        &settings::ALLOWED_RTMR1,
        &settings::ALLOWED_RTMR2,
        &settings::ALLOWED_RTMR3,
    ]
    .map(|setting| reader.read(setting));
    let app_id = reader.read(&settings::ALLOWED_APP_ID);
    let compose_hash = reader.read(&settings::ALLOWED_COMPOSE_HASH);
    let instance_id = reader.read(&settings::ALLOWED_INSTANCE_ID);
    let os_image_hash = reader.read(&settings::ALLOWED_OS_IMAGE_HASH);
    let kms_root = reader.read(&settings::KMS_ROOT);
    let tcb_statuses = reader.read(&settings::ACCEPTED_TCB_STATUS);
    let refused_advisories = reader.read(&settings::REFUSED_ADVISORIES);
    let min_tcb_evaluation = reader.read(&settings::MIN_TCB_EVALUATION_DATA_NUMBER);
    let allow_debug_td = reader.read(&settings::ALLOW_DEBUG_TD);
    let allow_unpinned_os = reader.read(&settings::ALLOW_UNPINNED_OS);
    let max_certificate_age = reader.read(&settings::MAX_CERTIFICATE_AGE);
    let settings = Settings {
        peers: Vec::new(),
        mrtd: mrtd?,
        rtmr: [rtmr0?, rtmr1?, rtmr2?, rtmr3?],
        app_id: app_id?,
        compose_hash: compose_hash?,
        instance_id: instance_id?,
        os_image_hash: os_image_hash?,
        kms_root: KmsRootPin::Any,
        tcb_statuses: tcb_statuses?,
        refused_advisories: refused_advisories?,
        min_tcb_evaluation: min_tcb_evaluation?,
        allow_debug_td: allow_debug_td?,
        allow_unpinned_os: allow_unpinned_os?,
        max_certificate_age: max_certificate_age?,
    };
    Some((settings, kms_root?))
}

/// `own` if identities are compared and nothing else says which operating systems are known.
fn default_kms_root(settings: &Settings, own: OwnRoot) -> KmsRootPin {
    let policy = Policy::new(Settings {
        allow_unpinned_os: false,
        ..settings.clone()
    });
    if settings.peers.is_empty() && !policy.unpinned().is_empty() {
        own.default_pin()
    } else {
        KmsRootPin::Any
    }
}

/// The flat settings that a policy file replaces must not be set.
fn refuse_flat_settings(reader: &mut Reader<'_>) -> Option<()> {
    let flat = [
        &settings::ALLOWED_MRTD.spec,
        &settings::ALLOWED_RTMR0.spec,
        &settings::ALLOWED_RTMR1.spec,
        &settings::ALLOWED_RTMR2.spec,
        &settings::ALLOWED_RTMR3.spec,
        &settings::ALLOWED_APP_ID.spec,
        &settings::ALLOWED_COMPOSE_HASH.spec,
        &settings::ALLOWED_INSTANCE_ID.spec,
        &settings::ALLOWED_OS_IMAGE_HASH.spec,
        &settings::KMS_ROOT.spec,
    ];
    let mut result = Some(());
    for spec in flat {
        if let Some(source) = reader.source(spec) {
            let text = format!(
                "{source}: {} is set, and so is policy_file: move it into the file, or remove one",
                spec.key
            );
            result = reader.error(text);
        }
    }
    result
}

/// Reads the entries of a policy file.
fn read_file(reader: &mut Reader<'_>, path: &Path, own: OwnRoot) -> Option<Vec<PeerEntry>> {
    let shown = path.display();
    let text = match file::read_text(path) {
        Ok(text) => text,
        Err(error) => return reader.error(format!("policy_file: {shown} {error}")),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let context = Context {
        roles: &Role::ALL.map(Role::name),
        default_roles: &DEFAULT_ROLES,
        default_kms_root: own.default_pin(),
        read_roots: &|name| read_roots(&folder.join(name)),
    };
    match file::parse(&text, &context) {
        Ok(peers) => Some(peers),
        Err(mistakes) => {
            for mistake in mistakes {
                let _: Option<()> = reader.error(format!("{shown}:{mistake}"));
            }
            None
        }
    }
}

/// Reads the KMS roots of a PEM file.
pub(super) fn read_roots(path: &Path) -> Result<Vec<KmsRoot>, String> {
    let pem = file::read(path, MAX_ROOTS_LEN).map_err(|error| error.to_string())?;
    KmsRoot::from_pem(&pem).map_err(|error| error.to_string())
}

/// The path of a policy file.
pub(super) fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("expected the path of a file, found an empty value".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// The value of `kms_root`.
pub(super) fn parse_kms_root(text: &str) -> Result<KmsRootSetting, String> {
    Ok(match text {
        "auto" => KmsRootSetting::Auto,
        "any" => KmsRootSetting::Pin(KmsRootPin::Any),
        "own" => KmsRootSetting::Pin(KmsRootPin::Own),
        "" => return Err("expected auto, own, any or a file, found an empty value".to_owned()),
        file => KmsRootSetting::Pin(KmsRootPin::Roots(read_roots(Path::new(file))?)),
    })
}

/// Reports entries that believe a guest whose operating system is not known.
fn check_operating_systems(reader: &mut Reader<'_>, policy: &Policy, file: Option<&Path>) {
    for unpinned in policy.unpinned() {
        let text = match (file, &unpinned.entry) {
            (Some(file), Some(entry)) => format!(
                "{}: peer {entry:?}: any TD can claim its identity, since the operating system that states \
                 it is not known: set os (an [[os]] with mrtd, rtmr1 and rtmr2) or kms_root (\"own\" in \
                 dstack, or a PEM file); `teesql-sidecar verify PEER --print-policy` prints the values. \
                 allow_unpinned_os = true accepts it all the same",
                file.display()
            ),
            _ => "any TD can claim the allowed identities, since the operating system that states them is not \
                  known: set kms_root (own in dstack, or a PEM file), or all of allowed_mrtd, \
                  allowed_rtmr1 and allowed_rtmr2; `teesql-sidecar verify PEER --print-policy` prints the \
                  values. allow_unpinned_os = true accepts it all the same"
                .to_owned(),
        };
        let _: Option<()> = reader.error(text);
    }
}

/// Dates that no KMS has signed are the peer's own word.
fn check_dates(reader: &mut Reader<'_>, policy: &Policy) {
    if policy.believes_unsigned_dates() {
        let _: Option<()> = reader.error(
            "max_certificate_age: a certificate's dates are its owner's word unless a KMS has signed them: \
             set kms_root too (own in dstack, or a PEM file; in a policy file for each [[peer]])",
        );
    }
}

fn check_own_root(reader: &mut Reader<'_>, policy: &Policy, own: OwnRoot) {
    if !policy.needs_own_root() {
        return;
    }
    let text = match own {
        OwnRoot::FromAgent | OwnRoot::OnRequest => return,
        OwnRoot::NoAgent => {
            "kms_root = own: this process' certificate comes from files, not from a guest agent: name the \
             PEM file with the KMS's root"
        }
        OwnRoot::Simulator => {
            "kms_root = own: the key of a simulator's CA is public, so that its root proves nothing: name \
             a PEM file, or pin the operating system"
        }
    };
    let _: Option<()> = reader.error(text);
}

/// A server that is not named can be any TDX application, and it receives the cluster secret.
fn check_server_is_named(reader: &mut Reader<'_>, policy: &Policy, file: Option<&Path>) {
    if policy.says_which_applications() {
        return;
    }
    let text = match file {
        Some(file) => format!(
            "{}: an entry admits every application, which would receive the cluster secret: set app_id or \
             compose_hash of each [[peer]]; --allow-any-server accepts it all the same",
            file.display()
        ),
        None => "nothing says which application the server must be, and any TD would receive the cluster \
                 secret: set policy_file, or allowed_app_id or allowed_compose_hash; --allow-any-server \
                 accepts it all the same"
            .to_owned(),
    };
    let _: Option<()> = reader.error(text);
}
