//! Finds the entry of a policy that a peer matches, or the one that comes closest.
//!
//! The checks of one entry are then made, and reported, one after the other. The closest entry is the
//! one whose identity matches best: of an application on another operating system, the log names the
//! application's entry and the measurement that differs.

use std::sync::Arc;

use super::entry::{KmsRootPin, OsEntry, PeerEntry};
use super::platform::PlatformClaims;
use super::{Policy, allowed};
use crate::chain::{Chain, KmsRoot};
use crate::denial::{Denial, Pin};
use crate::event_log::Identity;
use crate::quote::TdReport;
use crate::values::{
    MrConfigId, MrOwner, MrOwnerConfig, MrSeam, Mrtd, OsImageHash, Rtmr, TdAttributes, Xfam,
};

/// What a peer has shown, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// The report of its quote.
    pub report: &'a TdReport,
    /// What its event log proves; `None` if it proves nothing.
    pub identity: Option<&'a Identity>,
    /// What the platform's PCK certificate says.
    pub platform: &'a PlatformClaims,
    /// The certificates that it presented; `None` for a bare quote.
    pub chain: Option<&'a Chain>,
    /// The time, in Unix seconds.
    pub now: u64,
}

/// How far an entry is from a peer. The smallest is the closest: the derived order compares the fields
/// one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Distance {
    app_id: bool,
    compose_hash: bool,
    instance_id: bool,
    /// Number of the other fields that differ.
    fields: usize,
    kms_root: bool,
}

impl Distance {
    const NONE: Self = Self {
        app_id: false,
        compose_hash: false,
        instance_id: false,
        fields: 0,
        kms_root: false,
    };
}

/// The entry that a peer is compared with: the one that it matches, or the closest.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'p> {
    entry: &'p Arc<PeerEntry>,
    os: Option<&'p OsEntry>,
    /// Roots that stand for [`KmsRootPin::Own`].
    own_root: Option<&'p KmsRoot>,
}

impl Policy {
    /// The first entry that `claims` match in whole, else the closest.
    pub(crate) fn select(&self, claims: &Claims<'_>) -> Selected<'_> {
        let (first, rest) = &self.entries;
        let mut best = self.compare(first, claims);
        let mut roots = RootVerdicts::default();
        best.1.kms_root = best.1 == Distance::NONE && !roots.allows(&best.0, claims);
        for entry in rest {
            if best.1 == Distance::NONE {
                break;
            }
            let (selected, mut distance) = self.compare(entry, claims);
            if distance > best.1 {
                continue;
            }
            // A signature is verified only for an entry that matches otherwise.
            distance.kms_root = distance == Distance::NONE && !roots.allows(&selected, claims);
            if distance < best.1 {
                best = (selected, distance);
            }
        }
        best.0
    }

    fn compare<'p>(
        &'p self,
        entry: &'p Arc<PeerEntry>,
        claims: &Claims<'_>,
    ) -> (Selected<'p>, Distance) {
        let mut selected = Selected {
            entry,
            os: entry.os.first().map(|os| &**os),
            own_root: self.own_root.as_ref(),
        };
        let mut nearest = usize::MAX;
        for os in &entry.os {
            let candidate = Selected {
                os: Some(os),
                ..selected
            };
            let differing = candidate.os_differences(claims);
            if differing < nearest {
                (selected, nearest) = (candidate, differing);
            }
        }
        let unknown = Identity::default();
        let identity = claims.identity.unwrap_or(&unknown);
        let os = if entry.os.is_empty() { 0 } else { nearest };
        let distance = Distance {
            app_id: selected.check_app_id(identity).is_err(),
            compose_hash: selected.check_compose_hash(identity).is_err(),
            instance_id: selected.check_instance_id(identity).is_err(),
            fields: os + selected.other_differences(claims),
            kms_root: false,
        };
        (selected, distance)
    }
}

/// Results of chain verification, one for each set of roots.
#[derive(Default)]
struct RootVerdicts<'p>(Vec<(&'p [KmsRoot], bool)>);

impl<'p> RootVerdicts<'p> {
    fn allows(&mut self, selected: &Selected<'p>, claims: &Claims<'_>) -> bool {
        let roots = match (selected.kms_roots(), claims.chain) {
            (None, _) | (_, None) => return true,
            (Some(roots), Some(_)) => roots,
        };
        if let Some((_, verdict)) = self.0.iter().find(|(known, _)| *known == roots) {
            return *verdict;
        }
        let chain = claims
            .chain
            .map(|chain| selected.verify_chain(chain, claims.now));
        let verdict = chain.is_none_or(|result| result.is_ok());
        self.0.push((roots, verdict));
        verdict
    }
}

impl<'p> Selected<'p> {
    /// The entry.
    #[must_use]
    pub fn entry(&self) -> &'p Arc<PeerEntry> {
        self.entry
    }

    /// The operating system of the entry that the peer matches, or the closest.
    #[must_use]
    pub fn os(&self) -> Option<&'p OsEntry> {
        self.os
    }

    /// The roots of which one must have signed the chain; `None` if the chain is not looked at. Without
    /// any, no chain is accepted.
    #[must_use]
    pub fn kms_roots(&self) -> Option<&'p [KmsRoot]> {
        match &self.entry.kms_root {
            KmsRootPin::Any => None,
            KmsRootPin::Own => Some(self.own_root.map_or(&[], std::slice::from_ref)),
            KmsRootPin::Roots(roots) => Some(roots),
        }
    }

    /// Verifies `chain` up to one of the entry's roots. Gives the earliest notAfter of issuers and root.
    ///
    /// # Errors
    /// [`Denial::KmsRootMismatch`], [`Denial::MalformedCertificate`].
    pub fn verify_chain(&self, chain: &Chain, now: u64) -> Result<u64, Denial> {
        match self.kms_roots() {
            None => Ok(u64::MAX),
            Some([]) => Err(Denial::KmsRootMismatch),
            Some(roots) => chain.verify_up_to(roots, now),
        }
        .map_err(|denial| self.named(denial))
    }

    /// Refuses an MRTD that the operating system does not have.
    ///
    /// # Errors
    /// [`Denial::MrtdNotAllowed`].
    pub fn check_mrtd(&self, report: &TdReport) -> Result<(), Denial> {
        let mrtd = report.mrtd();
        self.check(self.mrtds(), Some(&mrtd), || Denial::MrtdNotAllowed(mrtd))
    }

    /// The allowed values of MRTD.
    #[must_use]
    pub fn mrtds(&self) -> &'p [Mrtd] {
        self.os.map_or(&[], |os| &os.mrtd)
    }

    /// The allowed OS image hashes: the operating system's, else the entry's.
    #[must_use]
    pub fn os_image_hashes(&self) -> &'p [OsImageHash] {
        match self.os {
            Some(os) if !os.os_image_hash.is_empty() => &os.os_image_hash,
            Some(_) | None => &self.entry.os_image_hash,
        }
    }

    /// The allowed values of RTMR0 to RTMR3.
    #[must_use]
    pub fn rtmrs(&self) -> [&'p [Rtmr]; 4] {
        let [rtmr0, rtmr1, rtmr2] = self
            .os
            .map_or([&[][..]; 3], |os| os.rtmr.each_ref().map(Vec::as_slice));
        [rtmr0, rtmr1, rtmr2, &self.entry.rtmr3]
    }

    /// Refuses each RTMR that is not allowed.
    ///
    /// # Errors
    /// [`Denial::RtmrNotAllowed`], each in its register's place.
    pub fn check_rtmrs(&self, report: &TdReport) -> [Result<(), Denial>; 4] {
        let check = |index, list: &[Rtmr], value| {
            self.check(list, Some(&value), || Denial::RtmrNotAllowed {
                index,
                value,
            })
        };
        let [list0, list1, list2, list3] = self.rtmrs();
        let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs();
        [
            check(0, list0, rtmr0),
            check(1, list1, rtmr1),
            check(2, list2, rtmr2),
            check(3, list3, rtmr3),
        ]
    }

    /// Refuses an app id that is not allowed. With a list, proving none is refused too; so for the
    /// other identities.
    ///
    /// # Errors
    /// [`Denial::AppNotAllowed`].
    pub fn check_app_id(&self, identity: &Identity) -> Result<(), Denial> {
        let app = identity.app_id();
        let denial = || Denial::AppNotAllowed(app);
        self.check(&self.entry.app_id, app.as_ref(), denial)
    }

    /// Refuses a compose hash that is not allowed.
    ///
    /// # Errors
    /// [`Denial::ComposeHashNotAllowed`].
    pub fn check_compose_hash(&self, identity: &Identity) -> Result<(), Denial> {
        let compose = identity.compose_hash();
        let denial = || Denial::ComposeHashNotAllowed(compose);
        self.check(&self.entry.compose_hash, compose.as_ref(), denial)
    }

    /// Refuses an instance id that is not allowed.
    ///
    /// # Errors
    /// [`Denial::InstanceNotAllowed`].
    pub fn check_instance_id(&self, identity: &Identity) -> Result<(), Denial> {
        let instance = identity.instance_id();
        let denial = || Denial::InstanceNotAllowed(instance);
        self.check(&self.entry.instance_id, instance.as_ref(), denial)
    }

    /// Refuses an OS image hash that is not the operating system's, or not the entry's.
    ///
    /// # Errors
    /// [`Denial::OsImageHashNotAllowed`].
    pub fn check_os_image_hash(&self, identity: &Identity) -> Result<(), Denial> {
        let hash = identity.os_image_hash();
        let denial = || Denial::OsImageHashNotAllowed(hash);
        let of_os = self.os.map_or(&[][..], |os| &os.os_image_hash);
        self.check(of_os, hash.as_ref(), denial)?;
        self.check(&self.entry.os_image_hash, hash.as_ref(), denial)
    }

    /// Refuses XFAM, TD attributes, MRCONFIGID, MROWNER or MROWNERCONFIG that is not allowed.
    ///
    /// # Errors
    /// [`Denial::PinNotAllowed`], the first.
    pub fn check_configuration(&self, report: &TdReport) -> Result<(), Denial> {
        let (xfam, attributes) = self
            .os
            .map_or((&[][..], &[][..]), |os| (&os.xfam, &os.td_attributes));
        let entry = &**self.entry;
        self.check_pin(Pin::Xfam, xfam, &Xfam(report.xfam()))?;
        let found = TdAttributes(report.attributes());
        self.check_pin(Pin::TdAttributes, attributes, &found)?;
        let found = MrConfigId(*report.mr_config_id());
        self.check_pin(Pin::MrConfigId, &entry.mr_config_id, &found)?;
        let found = MrOwner(*report.mr_owner());
        self.check_pin(Pin::MrOwner, &entry.mr_owner, &found)?;
        let found = MrOwnerConfig(*report.mr_owner_config());
        self.check_pin(Pin::MrOwnerConfig, &entry.mr_owner_config, &found)
    }

    /// Refuses a TDX module, a machine or a property of it that is not allowed. What the PCK
    /// certificate does not say is refused where it is pinned.
    ///
    /// # Errors
    /// [`Denial::PinNotAllowed`], the first.
    pub fn check_platform(
        &self,
        report: &TdReport,
        platform: &PlatformClaims,
    ) -> Result<(), Denial> {
        let pins = &self.entry.platform;
        let found = MrSeam(*report.mr_seam());
        self.check_pin(Pin::MrSeam, &pins.mr_seam, &found)?;
        let shown = || platform.piid.map(|piid| piid.to_string().into());
        let denial = || Denial::PinNotAllowed(Pin::Piid, shown());
        self.check(&pins.piid, platform.piid.as_ref(), denial)?;
        for (pin, wanted, found) in [
            (Pin::Smt, pins.smt, platform.smt),
            (
                Pin::DynamicPlatform,
                pins.dynamic_platform,
                platform.dynamic_platform,
            ),
            (Pin::CachedKeys, pins.cached_keys, platform.cached_keys),
        ] {
            if wanted.is_some() && found != wanted {
                let shown = found.map(|found| found.to_string().into());
                return Err(self.named(Denial::PinNotAllowed(pin, shown)));
            }
        }
        Ok(())
    }

    fn check_pin<T: PartialEq + ToString>(
        &self,
        pin: Pin,
        list: &[T],
        found: &T,
    ) -> Result<(), Denial> {
        self.check(list, Some(found), || {
            Denial::PinNotAllowed(pin, Some(found.to_string().into()))
        })
    }

    fn check<T: PartialEq>(
        &self,
        list: &[T],
        value: Option<&T>,
        denial: impl FnOnce() -> Denial,
    ) -> Result<(), Denial> {
        allowed(list, value, denial).map_err(|denial| self.named(denial))
    }

    /// Says of which entry a denial is, if entries have names.
    fn named(&self, denial: Denial) -> Denial {
        match &self.entry.name {
            Some(entry) => Denial::Entry {
                entry: Arc::clone(entry),
                os: self.os.and_then(|os| os.name.clone()),
                denial: Box::new(denial),
            },
            None => denial,
        }
    }

    /// Number of the operating system's values that differ.
    fn os_differences(&self, claims: &Claims<'_>) -> usize {
        let Some(os) = self.os else { return 0 };
        let report = claims.report;
        let [list0, list1, list2, _] = self.rtmrs();
        let [rtmr0, rtmr1, rtmr2, _] = report.rtmrs();
        let hash = claims.identity.and_then(Identity::os_image_hash);
        let differs = [
            !is_allowed(&os.mrtd, Some(&report.mrtd())),
            !is_allowed(list0, Some(&rtmr0)),
            !is_allowed(list1, Some(&rtmr1)),
            !is_allowed(list2, Some(&rtmr2)),
            !is_allowed(&os.os_image_hash, hash.as_ref()),
            !is_allowed(&os.xfam, Some(&Xfam(report.xfam()))),
            !is_allowed(&os.td_attributes, Some(&TdAttributes(report.attributes()))),
        ];
        differs.into_iter().filter(|differs| *differs).count()
    }

    /// Number of the entry's other values that differ, apart from app id, compose hash and instance id.
    fn other_differences(&self, claims: &Claims<'_>) -> usize {
        let (entry, report) = (&**self.entry, claims.report);
        let hash = claims.identity.and_then(Identity::os_image_hash);
        let differs = [
            !is_allowed(&entry.rtmr3, Some(&report.rtmr3())),
            !is_allowed(&entry.os_image_hash, hash.as_ref()),
            !is_allowed(
                &entry.mr_config_id,
                Some(&MrConfigId(*report.mr_config_id())),
            ),
            !is_allowed(&entry.mr_owner, Some(&MrOwner(*report.mr_owner()))),
            !is_allowed(
                &entry.mr_owner_config,
                Some(&MrOwnerConfig(*report.mr_owner_config())),
            ),
            self.check_platform(report, claims.platform).is_err(),
        ];
        differs.into_iter().filter(|differs| *differs).count()
    }
}

/// An empty list allows any value, and none.
pub(super) fn is_allowed<T: PartialEq>(list: &[T], value: Option<&T>) -> bool {
    list.is_empty() || value.is_some_and(|value| list.contains(value))
}
