//! The part of the configuration that says what clients have to prove.

use std::path::PathBuf;

use attest::TrustedRoot;
use attest::collateral::{Collateral, Source};
use attest::policy::{Policy, Settings};

use super::layers::{Layers, Reader};
use super::{Errors, values};

pub(super) const UNATTESTED: &str =
    "clients are not attested: whoever has a cluster secret gets in";

/// What evidence is judged by: the part of the settings that `verify` has too.
pub struct Criteria {
    /// Allow-lists and what else is accepted.
    pub policy: Policy,
    /// Intel's root, or a dangerous one.
    pub root: TrustedRoot,
    /// Where collateral is fetched from.
    pub source: Option<Source>,
}

impl Criteria {
    /// Checks these settings, and no others.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let mut reader = Reader::new(layers);
        match (Self::read(&mut reader), reader.errors()) {
            (Some(criteria), errors) if errors.is_empty() => Ok(criteria),
            (_, errors) => Err(Errors(errors)),
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let policy = read_policy(reader);
        let root = reader.get("dangerous_tdx_root_ca", values::tdx_root);
        let source = reader.get("pccs", values::pccs);
        Some(Self {
            policy: policy?,
            root: root?,
            source: source?,
        })
    }
}

/// What clients are judged by, and with what.
pub struct Attestation {
    /// Allow-lists and what else is accepted.
    pub policy: Policy,
    /// Intel's root, or a dangerous one.
    pub root: TrustedRoot,
    /// Where collateral is fetched from.
    pub source: Option<Source>,
    /// Where it is kept over restarts.
    pub folder: Option<PathBuf>,
    /// What to start with.
    pub collateral: Vec<Collateral>,
}

impl Attestation {
    /// `Some(None)` where clients need not be attested; all of it is checked
    /// all the same.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Option<Self>> {
        let required = reader.attestation();
        let criteria = Criteria::read(reader);
        let folder = reader.get("collateral_dir", values::folder);
        let collateral = reader.get("collateral_files", values::collateral_files);
        let criteria = criteria?;
        let attestation = Self {
            policy: criteria.policy,
            root: criteria.root,
            source: criteria.source,
            folder: folder?,
            collateral: collateral?,
        };
        Some(required?.then_some(attestation))
    }

    /// What it leaves open.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let root = self.root.is_dangerous().then(|| {
            format!(
                "TDX quotes are trusted under another root than Intel's ({}): whoever holds its \
                 key can make any quote",
                self.root.fingerprint()
            )
        });
        let source = (self.source.is_none()).then(|| {
            "no PCCS: when the collateral at hand expires, no client is let in any more".to_owned()
        });
        let policy = self.policy.warnings();
        let policy = policy.iter().map(ToString::to_string);
        root.into_iter().chain(source).chain(policy).collect()
    }
}

fn read_policy(reader: &mut Reader<'_>) -> Option<Policy> {
    let mrtd = reader.get("allowed_mrtd", values::list);
    let rtmr = [
        "allowed_rtmr0",
        "allowed_rtmr1",
        "allowed_rtmr2",
        "allowed_rtmr3",
    ]
    .map(|name| reader.get(name, values::list));
    let app_id = reader.get("allowed_app_id", values::list);
    let compose_hash = reader.get("allowed_compose_hash", values::list);
    let os_image_hash = reader.get("allowed_os_image_hash", values::list);
    let tcb_statuses = reader.get("accepted_tcb_status", values::tcb_statuses);
    let refused_advisories = reader.get("refused_advisories", values::list);
    let allow_debug_td = reader.get("allow_debug_td", values::boolean);
    let max_certificate_age = reader.get("max_certificate_age", values::duration_or_off);
    let kms_roots = reader.get("kms_root", values::kms_roots);
    let [rtmr0, rtmr1, rtmr2, rtmr3] = rtmr;
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
