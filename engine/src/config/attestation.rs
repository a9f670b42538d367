//! The configuration of attestation: the policy for peers, and the collateral to verify quotes with.

use std::path::PathBuf;

use attest::TrustedRoot;
use attest::agent::AgentAddresses;
use attest::collateral::{Collateral, Source};
use attest::policy::Policy;

use super::identity::read_guest_agent;
use super::layers::Layers;
use super::policy::{self, OwnRoot, Purpose};
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
    /// The guest agent, which shows the root of `kms_root = own`.
    pub guest_agent: AgentAddresses,
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
        let criteria =
            VerificationSettings::read(reader, Purpose::Inspection, OwnRoot::on_request(reader));
        let guest_agent = read_guest_agent(reader);
        let VerificationSettings {
            policy,
            root,
            source,
        } = criteria?;
        Some(Self {
            policy,
            root,
            source,
            guest_agent: guest_agent?,
        })
    }
}

/// What [`Criteria`] and [`Attestation`] share.
struct VerificationSettings {
    policy: Policy,
    root: TrustedRoot,
    source: Option<Source>,
}

impl VerificationSettings {
    fn read(reader: &mut Reader<'_>, purpose: Purpose, own: OwnRoot) -> Option<Self> {
        let policy = policy::read(reader, purpose, own);
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
    /// Reads what peers have to prove. `own` says whether this process' KMS root is known.
    pub(super) fn read(reader: &mut Reader<'_>, purpose: Purpose, own: OwnRoot) -> Option<Self> {
        let criteria = VerificationSettings::read(reader, purpose, own);
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
    pub(super) fn read_if_required(reader: &mut Reader<'_>, own: OwnRoot) -> Option<Option<Self>> {
        let required = reader.attestation_required();
        let purpose = Purpose::Clients {
            required: required == Some(true),
        };
        let attestation = Self::read(reader, purpose, own)?;
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
