//! The entries of a policy: operating systems and peers, each a tuple of reference values.
//!
//! A peer is admitted by one entry in whole. Lists that are checked independently would admit the
//! application of one entry on the operating system of another. An empty list allows any value.

use std::sync::Arc;

use crate::chain::KmsRoot;
use crate::values::{
    AppId, ComposeHash, InstanceId, MrConfigId, MrOwner, MrOwnerConfig, MrSeam, Mrtd, OsImageHash,
    Piid, Rtmr, TdAttributes, Xfam,
};

/// One operating system: reference values that belong together. A TD matches if every list that is
/// not empty has its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsEntry {
    /// Its name in the policy file.
    pub name: Option<Arc<str>>,
    /// Hashes of the OS image.
    pub os_image_hash: Vec<OsImageHash>,
    /// MRTD: the firmware.
    pub mrtd: Vec<Mrtd>,
    /// RTMR0 (virtual hardware), RTMR1 (kernel) and RTMR2 (command line and initrd).
    pub rtmr: [Vec<Rtmr>; 3],
    /// XFAM.
    pub xfam: Vec<Xfam>,
    /// TDATTRIBUTES.
    pub td_attributes: Vec<TdAttributes>,
}

impl OsEntry {
    /// Whether firmware, kernel and initrd are pinned: MRTD, RTMR1 and RTMR2.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        let [_, kernel, initrd] = &self.rtmr;
        !self.mrtd.is_empty() && !kernel.is_empty() && !initrd.is_empty()
    }
}

/// The KMS roots that may have signed a peer's certificate chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KmsRootPin {
    /// The chain is not looked at.
    #[default]
    Any,
    /// The root of the chain that this machine's own guest agent issued. It is not known when the
    /// configuration is read: [`Policy::with_own_root`](super::Policy::with_own_root) sets it.
    Own,
    /// These roots.
    Roots(Vec<KmsRoot>),
}

/// What the PCK certificate of a peer's platform must say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlatformPins {
    /// MRSEAM: the TDX module.
    pub mr_seam: Vec<MrSeam>,
    /// Platform instances: single machines.
    pub piid: Vec<Piid>,
    /// Whether simultaneous multithreading is on.
    pub smt: Option<bool>,
    /// Whether packages can be added to the platform.
    pub dynamic_platform: Option<bool>,
    /// Whether Intel's registration service keeps the platform's root keys.
    pub cached_keys: Option<bool>,
}

/// What a peer may do once it is admitted. Enforced by the sidecar, not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// The roles that it may log in as. `None`: any.
    pub roles: Option<Vec<Box<str>>>,
    /// The databases that it may connect to. `None`: any.
    pub databases: Option<Vec<Box<str>>>,
    /// The number of its concurrent sessions.
    pub max_sessions: Option<u32>,
}

/// Peers that are admitted: reference values that belong together, and what such peers may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerEntry {
    /// Its name in the policy file. `None` for the entry that the flat settings make.
    pub name: Option<Arc<str>>,
    /// dstack app ids.
    pub app_id: Vec<AppId>,
    /// dstack compose hashes.
    pub compose_hash: Vec<ComposeHash>,
    /// dstack instance ids.
    pub instance_id: Vec<InstanceId>,
    /// OS image hashes, whatever the operating system's other values are.
    pub os_image_hash: Vec<OsImageHash>,
    /// RTMR3.
    pub rtmr3: Vec<Rtmr>,
    /// MRCONFIGID.
    pub mr_config_id: Vec<MrConfigId>,
    /// MROWNER.
    pub mr_owner: Vec<MrOwner>,
    /// MROWNERCONFIG.
    pub mr_owner_config: Vec<MrOwnerConfig>,
    /// Operating systems, of which one must match in whole. Empty: any.
    pub os: Vec<Arc<OsEntry>>,
    /// KMS roots.
    pub kms_root: KmsRootPin,
    /// The platform.
    pub platform: PlatformPins,
    /// What such a peer may do.
    pub grants: Grants,
    /// Whether such a peer is a member of the cluster, which may open links. Enforced by the sidecar, not here.
    pub member: bool,
}

impl PeerEntry {
    /// Whether something that software in the guest, or its host, states is compared. It is true only
    /// if the operating system is known.
    #[must_use]
    pub fn has_identity(&self) -> bool {
        self.says_which_application()
            || !self.os_image_hash.is_empty()
            || !self.mr_owner.is_empty()
            || !self.mr_owner_config.is_empty()
            || self.os.iter().any(|os| !os.os_image_hash.is_empty())
    }

    /// Whether it admits certain applications only. An OS image hash does not say which application
    /// runs on it.
    #[must_use]
    pub fn says_which_application(&self) -> bool {
        !self.app_id.is_empty()
            || !self.compose_hash.is_empty()
            || !self.instance_id.is_empty()
            || !self.rtmr3.is_empty()
            || !self.mr_config_id.is_empty()
    }

    /// Whether what the guest states can be believed: every operating system is pinned by MRTD, RTMR1
    /// and RTMR2, or a KMS root is pinned, whose KMS gives its keys to known images only.
    #[must_use]
    pub fn is_os_pinned(&self) -> bool {
        let pinned = !self.os.is_empty() && self.os.iter().all(|os| os.is_pinned());
        pinned || self.kms_root != KmsRootPin::Any
    }
}
