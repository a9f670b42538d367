//! The configuration of attestation: the policy for peers, and the collateral to verify quotes with.

use std::path::PathBuf;

use attest::TrustedRoot;
use attest::collateral::{Collateral, Source};
use attest::policy::{Policy, Settings};

use super::layers::Layers;
use super::reader::{Reader, read_all};
use super::{Errors, settings};

pub(super) const UNATTESTED: &str =
    "clients are not attested: any client with a cluster secret is accepted";

/// The settings that decide whether a peer is accepted. `verify` has them too.
pub struct Criteria {
    /// Allow-lists, accepted TCB statuses and other conditions.
    pub policy: Policy,
    /// Intel's root, or a dangerous one.
    pub root: TrustedRoot,
    /// Where to fetch collateral. `None` fetches none.
    pub source: Option<Source>,
}

impl Criteria {
    /// Parses and checks the settings of [`Scope::Criteria`](super::Scope::Criteria).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        read_all(layers, Self::read).map(|(criteria, _)| criteria)
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let policy = read_policy(reader);
        let root = reader.read(&settings::DANGEROUS_TDX_ROOT_CA);
        let source = reader.read(&settings::PCCS);
        Some(Self {
            policy: policy?,
            root: root?,
            source: source?,
        })
    }
}

/// What peers have to prove, and the collateral to verify it with.
pub struct Attestation {
    /// Allow-lists, accepted TCB statuses and other conditions.
    pub policy: Policy,
    /// Intel's root, or a dangerous one.
    pub root: TrustedRoot,
    /// Where to fetch collateral. `None` fetches none.
    pub source: Option<Source>,
    /// Where collateral is kept across restarts.
    pub folder: Option<PathBuf>,
    /// Collateral to start with.
    pub collateral: Vec<Collateral>,
}

impl Attestation {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let criteria = Criteria::read(reader);
        let folder = reader.read(&settings::COLLATERAL_DIR);
        let collateral = reader.read(&settings::COLLATERAL_FILES);
        let criteria = criteria?;
        Some(Self {
            policy: criteria.policy,
            root: criteria.root,
            source: criteria.source,
            folder: folder?,
            collateral: collateral?,
        })
    }

    /// `Some(None)` if clients need not be attested. The settings are checked all the same.
    pub(super) fn read_if_required(reader: &mut Reader<'_>) -> Option<Option<Self>> {
        let required = reader.attestation_required();
        let attestation = Self::read(reader)?;
        Some(required?.then_some(attestation))
    }

    /// Which checks the policy leaves out, and other weaknesses.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let root = self.root.is_dangerous().then(|| {
            format!(
                "dangerous_tdx_root_ca: TDX quotes are verified against a root other than Intel's \
                 ({}), and the owner of its key can forge any quote",
                self.root.fingerprint()
            )
        });
        let source = self.source.is_none().then(|| {
            "pccs = off: once the loaded collateral expires, all new peers are refused".to_owned()
        });
        let policy = self.policy.warnings();
        let policy = policy.iter().map(ToString::to_string);
        root.into_iter().chain(source).chain(policy).collect()
    }
}

fn read_policy(reader: &mut Reader<'_>) -> Option<Policy> {
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
    let os_image_hash = reader.read(&settings::ALLOWED_OS_IMAGE_HASH);
    let tcb_statuses = reader.read(&settings::ACCEPTED_TCB_STATUS);
    let refused_advisories = reader.read(&settings::REFUSED_ADVISORIES);
    let allow_debug_td = reader.read(&settings::ALLOW_DEBUG_TD);
    let max_certificate_age = reader.read(&settings::MAX_CERTIFICATE_AGE);
    let kms_roots = reader.read(&settings::KMS_ROOT);
    Some(Policy::new(Settings {
        mrtd: mrtd?,
        rtmr: [rtmr0?, rtmr1?, rtmr2?, rtmr3?],
        app_id: app_id?,
        compose_hash: compose_hash?,
        os_image_hash: os_image_hash?,
        tcb_statuses: tcb_statuses?,
        refused_advisories: refused_advisories?,
        allow_debug_td: allow_debug_td?,
        max_certificate_age: max_certificate_age?,
        kms_roots: kms_roots?,
    }))
}
