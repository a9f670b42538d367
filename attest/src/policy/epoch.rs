//! The hash of a policy.

use std::fmt;

use sha2::{Digest, Sha256};

use super::Settings;
use super::entry::{Grants, KmsRootPin, OsEntry, PeerEntry, PlatformPins};
use crate::chain::KmsRoot;
use crate::values::{
    AppId, ComposeHash, InstanceId, MrConfigId, MrOwner, MrOwnerConfig, MrSeam, Mrtd, OsImageHash,
    Piid, Rtmr, TdAttributes, Xfam,
};

/// The hash of a whole policy: equal epochs give equal verdicts and equal grants.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyEpoch([u8; 32]);

impl PolicyEpoch {
    /// All 64 hex digits: for an audit trail.
    #[must_use]
    pub fn full(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for PolicyEpoch {
    /// The first 16 hex digits: enough to tell two policies apart in a log or metric.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyEpoch({self})")
    }
}

/// SHA-256 over every setting and entry: each list and text with its length before it, so that no two
/// policies are the same bytes. A new setting must be added here; the patterns without `..` see to it.
pub(super) fn of(settings: &Settings, own_root: Option<&KmsRoot>) -> PolicyEpoch {
    let Settings {
        peers,
        mrtd,
        rtmr,
        app_id,
        compose_hash,
        instance_id,
        os_image_hash,
        kms_root,
        tcb_statuses,
        refused_advisories,
        min_tcb_evaluation,
        allow_debug_td,
        allow_unpinned_os,
        max_certificate_age,
    } = settings;
    let mut hash = Hash(Sha256::new());
    hash.number(peers.len());
    peers.iter().for_each(|peer| hash.peer(peer));
    hash.list(mrtd.iter().map(Mrtd::as_bytes));
    for register in rtmr {
        hash.list(register.iter().map(Rtmr::as_bytes));
    }
    hash.list(app_id.iter().map(AppId::as_bytes));
    hash.list(compose_hash.iter().map(ComposeHash::as_bytes));
    hash.list(instance_id.iter().map(InstanceId::as_bytes));
    hash.list(os_image_hash.iter().map(OsImageHash::as_bytes));
    hash.roots(kms_root);
    hash.list(own_root.into_iter().map(KmsRoot::der));
    hash.0.update(tcb_statuses.bits().to_le_bytes());
    hash.list(refused_advisories.iter().map(|id| id.as_str().as_bytes()));
    hash.optional(min_tcb_evaluation.map(u64::from));
    hash.0
        .update([u8::from(*allow_debug_td), u8::from(*allow_unpinned_os)]);
    hash.optional(max_certificate_age.map(|age| age.as_secs()));
    PolicyEpoch(hash.0.finalize().into())
}

struct Hash(Sha256);

impl Hash {
    fn number(&mut self, number: usize) {
        let number = u64::try_from(number).unwrap_or(u64::MAX);
        self.0.update(number.to_le_bytes());
    }

    fn optional(&mut self, number: Option<u64>) {
        self.0.update([u8::from(number.is_some())]);
        self.0.update(number.unwrap_or(0).to_le_bytes());
    }

    fn list<'a>(&mut self, items: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.number(items.len());
        for item in items {
            self.number(item.len());
            self.0.update(item);
        }
    }

    fn texts(&mut self, texts: Option<&[Box<str>]>) {
        self.0.update([u8::from(texts.is_some())]);
        self.list(texts.unwrap_or_default().iter().map(|text| text.as_bytes()));
    }

    fn roots(&mut self, pin: &KmsRootPin) {
        match pin {
            KmsRootPin::Any => self.0.update([0]),
            KmsRootPin::Own => self.0.update([1]),
            KmsRootPin::Roots(roots) => {
                self.0.update([2]);
                self.list(roots.iter().map(KmsRoot::der));
            }
        }
    }

    fn os(&mut self, os: &OsEntry) {
        let OsEntry {
            name,
            os_image_hash,
            mrtd,
            rtmr,
            xfam,
            td_attributes,
        } = os;
        self.list(name.iter().map(|name| name.as_bytes()));
        self.list(os_image_hash.iter().map(OsImageHash::as_bytes));
        self.list(mrtd.iter().map(Mrtd::as_bytes));
        for register in rtmr {
            self.list(register.iter().map(Rtmr::as_bytes));
        }
        self.list(xfam.iter().map(Xfam::as_bytes));
        self.list(td_attributes.iter().map(TdAttributes::as_bytes));
    }

    fn peer(&mut self, peer: &PeerEntry) {
        let PeerEntry {
            name,
            app_id,
            compose_hash,
            instance_id,
            os_image_hash,
            rtmr3,
            mr_config_id,
            mr_owner,
            mr_owner_config,
            os,
            kms_root,
            platform,
            grants,
            member,
        } = peer;
        self.list(name.iter().map(|name| name.as_bytes()));
        self.list(app_id.iter().map(AppId::as_bytes));
        self.list(compose_hash.iter().map(ComposeHash::as_bytes));
        self.list(instance_id.iter().map(InstanceId::as_bytes));
        self.list(os_image_hash.iter().map(OsImageHash::as_bytes));
        self.list(rtmr3.iter().map(Rtmr::as_bytes));
        self.list(mr_config_id.iter().map(MrConfigId::as_bytes));
        self.list(mr_owner.iter().map(MrOwner::as_bytes));
        self.list(mr_owner_config.iter().map(MrOwnerConfig::as_bytes));
        self.number(os.len());
        os.iter().for_each(|os| self.os(os));
        self.roots(kms_root);
        self.platform(platform);
        let Grants {
            roles,
            databases,
            max_sessions,
        } = grants;
        self.texts(roles.as_deref());
        self.texts(databases.as_deref());
        self.optional(max_sessions.map(u64::from));
        self.0.update([u8::from(*member)]);
    }

    fn platform(&mut self, platform: &PlatformPins) {
        let PlatformPins {
            mr_seam,
            piid,
            smt,
            dynamic_platform,
            cached_keys,
        } = platform;
        self.list(mr_seam.iter().map(MrSeam::as_bytes));
        self.list(piid.iter().map(Piid::as_bytes));
        for flag in [smt, dynamic_platform, cached_keys] {
            self.0.update([flag.map_or(2, u8::from)]);
        }
    }
}
