//! Which leader is followed: never one of an older epoch.

use super::{Manifest, ManifestError};

/// The newest manifest that was accepted.
#[derive(Clone, Debug, Default)]
pub struct LeaderState {
    newest: Option<Manifest>,
}

/// What an accepted manifest means for who follows the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderUpdate {
    /// The first one, or one of a newer epoch: its target is the one to connect to from now on.
    New,
    /// The leader that was followed already, perhaps for longer.
    Same,
}

impl LeaderState {
    /// Takes a verified manifest. One that is refused changes nothing.
    ///
    /// # Errors
    /// [`ManifestError::OtherCluster`]; [`ManifestError::OldEpoch`]; [`ManifestError::Equivocation`]
    /// if the epoch is the same and instance or target are not: a signer that says two things is
    /// wrong about one, and only a newer epoch settles which.
    pub fn accept(&mut self, manifest: Manifest) -> Result<LeaderUpdate, ManifestError> {
        let accepted = match &self.newest {
            None => LeaderUpdate::New,
            Some(held) => follows(held, &manifest)?,
        };
        let held_until = self.newest.as_ref().map(Manifest::valid_until);
        if accepted == LeaderUpdate::New || held_until < Some(manifest.valid_until()) {
            self.newest = Some(manifest);
        }
        Ok(accepted)
    }

    /// The newest manifest, also after its time.
    #[must_use]
    pub fn newest(&self) -> Option<&Manifest> {
        self.newest.as_ref()
    }

    /// The leader at `now` (unix seconds); `None` if none was accepted.
    ///
    /// # Errors
    /// [`ManifestError::Expired`] if the newest manifest is not in date any more.
    pub fn leader(&self, now: u64) -> Result<Option<&Manifest>, ManifestError> {
        match &self.newest {
            Some(manifest) if manifest.valid_until() <= now => Err(ManifestError::Expired),
            newest => Ok(newest.as_ref()),
        }
    }
}

fn follows(held: &Manifest, next: &Manifest) -> Result<LeaderUpdate, ManifestError> {
    if held.cluster() != next.cluster() {
        return Err(ManifestError::OtherCluster);
    }
    let (held_epoch, found) = (held.epoch(), next.epoch());
    if found < held_epoch {
        return Err(ManifestError::OldEpoch {
            found,
            held: held_epoch,
        });
    }
    if found > held_epoch {
        return Ok(LeaderUpdate::New);
    }
    let same = held.target() == next.target() && held.leader_instance() == next.leader_instance();
    match same {
        true => Ok(LeaderUpdate::Same),
        false => Err(ManifestError::Equivocation { epoch: found }),
    }
}
