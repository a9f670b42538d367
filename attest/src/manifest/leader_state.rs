//! The leader that a client follows, which never goes back to an older epoch.

use super::{Manifest, ManifestError};

/// The newest accepted manifest.
#[derive(Clone, Debug, Default)]
pub struct LeaderState {
    newest: Option<Manifest>,
}

/// What an accepted manifest means for a client that follows the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderUpdate {
    /// The first manifest, or one of a newer epoch: connect to its target from now on.
    New,
    /// The same leader, perhaps valid for longer.
    Same,
}

impl LeaderState {
    /// Accepts a verified manifest. A refused one changes nothing.
    ///
    /// # Errors
    /// [`ManifestError::OtherCluster`]; [`ManifestError::OldEpoch`]; [`ManifestError::Equivocation`] for the
    /// same epoch with another instance or target: one of the two is wrong, and only a newer epoch decides
    /// which.
    pub fn accept(&mut self, manifest: Manifest) -> Result<LeaderUpdate, ManifestError> {
        let accepted = match &self.newest {
            None => LeaderUpdate::New,
            Some(followed) => follows(followed, &manifest)?,
        };
        let valid_until = self.newest.as_ref().map(Manifest::valid_until);
        if accepted == LeaderUpdate::New || valid_until < Some(manifest.valid_until()) {
            self.newest = Some(manifest);
        }
        Ok(accepted)
    }

    /// The newest manifest, even if it has expired.
    #[must_use]
    pub fn newest(&self) -> Option<&Manifest> {
        self.newest.as_ref()
    }

    /// The leader at `now` (Unix seconds); `None` if no manifest was accepted.
    ///
    /// # Errors
    /// [`ManifestError::Expired`] if the newest manifest has expired.
    pub fn leader(&self, now: u64) -> Result<Option<&Manifest>, ManifestError> {
        match &self.newest {
            Some(manifest) if manifest.valid_until() <= now => Err(ManifestError::Expired),
            newest => Ok(newest.as_ref()),
        }
    }
}

/// Whether a client that follows one manifest may follow the next.
pub(super) fn follows(followed: &Manifest, next: &Manifest) -> Result<LeaderUpdate, ManifestError> {
    if followed.cluster() != next.cluster() {
        return Err(ManifestError::OtherCluster);
    }
    let (held_epoch, found) = (followed.epoch(), next.epoch());
    if found < held_epoch {
        return Err(ManifestError::OldEpoch {
            found,
            held: held_epoch,
        });
    }
    if found > held_epoch {
        return Ok(LeaderUpdate::New);
    }
    let same =
        followed.target() == next.target() && followed.leader_instance() == next.leader_instance();
    match same {
        true => Ok(LeaderUpdate::Same),
        false => Err(ManifestError::Equivocation { epoch: found }),
    }
}
