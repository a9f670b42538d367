//! The choice among several TXT records: the valid manifest with the highest epoch.
//!
//! Publishers of a cluster are active-active, so that a record of each may be there, and DNS may hold one that a
//! publisher could not remove. An invalid record must not hide a valid one.

use super::leader_state::follows;
use super::{LeaderUpdate, Manifest, ManifestError, ManifestPolicy, join_chunks};

/// Verifies every record, each given as its character strings, and returns the manifest with the highest epoch, of
/// those the one that is valid longest; `None` if there is no record. `now` is in Unix seconds. The caller limits
/// the number of records to [`MAX_MANIFEST_RECORDS`](super::MAX_MANIFEST_RECORDS).
///
/// # Errors
/// [`ManifestError::Equivocation`] if two valid manifests name different leaders for the highest epoch;
/// [`ManifestError::OtherCluster`] if they are for different clusters. If no record is valid, the error of the one that
/// passed the most checks.
pub fn newest_of<'a>(
    records: impl IntoIterator<Item = Vec<&'a [u8]>>,
    policy: &ManifestPolicy,
    now: u64,
) -> Result<Option<Manifest>, ManifestError> {
    let mut newest: Option<Manifest> = None;
    let mut contradiction = None;
    let mut failure: Option<ManifestError> = None;
    for record in records {
        let next = match verify(&record, policy, now) {
            Ok(manifest) => manifest,
            Err(error) => {
                let furthest = failure
                    .as_ref()
                    .is_none_or(|other| order(other) < order(&error));
                if furthest {
                    failure = Some(error);
                }
                continue;
            }
        };
        match newest.as_ref().map(|newest| follows(newest, &next)) {
            None | Some(Ok(LeaderUpdate::New)) => {
                newest = Some(next);
                contradiction = None;
            }
            Some(Ok(LeaderUpdate::Same)) => {
                let until = newest.as_ref().map(Manifest::valid_until);
                if until < Some(next.valid_until()) {
                    newest = Some(next);
                }
            }
            Some(Err(ManifestError::OldEpoch { .. })) => {}
            Some(Err(error @ ManifestError::Equivocation { .. })) => contradiction = Some(error),
            Some(Err(error)) => return Err(error),
        }
    }
    match (contradiction, newest, failure) {
        (Some(error), _, _) | (None, None, Some(error)) => Err(error),
        (None, newest, _) => Ok(newest),
    }
}

fn verify(record: &[&[u8]], policy: &ManifestPolicy, now: u64) -> Result<Manifest, ManifestError> {
    Manifest::parse(&join_chunks(record)?)?.verify(policy, now)
}

/// The position of the failed check among all of them.
fn order(error: &ManifestError) -> Option<usize> {
    let code = error.code();
    ManifestError::CODES.iter().position(|other| *other == code)
}
