//! What to do with the records that stand at the name before a manifest is published there. No I/O.
//!
//! Only records that the own key has signed for the own cluster are replaced. Others may be those of another publisher
//! (a name may have several), and forged ones do no harm: clients ignore them. A higher epoch, or another
//! leader of the same one, must never be hidden: clients that have seen it would refuse this manifest.

use attest::manifest::{
    EthAddress, Manifest, ManifestError, ManifestPolicy, UnsignedManifest, join_chunks,
};

use super::error::PublishError;

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The positions of the records to replace.
    pub(super) replace: Vec<usize>,
    /// Another address that has signed a valid record for the same cluster.
    pub(super) foreign_signer: Option<EthAddress>,
}

/// Plans the publication of `own`, signed by `signer`, where `records` stand, each given as its character strings. `now`
/// is in Unix seconds.
///
/// # Errors
/// [`PublishError::HigherEpoch`]; [`PublishError::EpochTaken`].
pub(super) fn plan(
    records: &[Vec<&[u8]>],
    own: &UnsignedManifest,
    signer: EthAddress,
    now: u64,
) -> Result<Plan, PublishError> {
    let mut plan = Plan::default();
    for (position, record) in records.iter().enumerate() {
        let Some((manifest, signed_by)) = read(record, signer) else {
            continue;
        };
        let same_cluster = manifest.cluster() == own.cluster;
        if signed_by != signer {
            // Without `manifest_cluster` each signer names its own address.
            let unnamed = own.cluster == signer && manifest.cluster() == signed_by;
            // One that has expired may be of a key that was replaced.
            if (same_cluster || unnamed) && manifest.valid_until() > now {
                plan.foreign_signer = Some(signed_by);
            }
            continue;
        }
        if !same_cluster {
            continue;
        }
        check_epoch(&manifest, own)?;
        plan.replace.push(position);
    }
    Ok(plan)
}

/// A record whose signature is valid, and who signed it. It may have expired.
fn read(record: &[&[u8]], signer: EthAddress) -> Option<(Manifest, EthAddress)> {
    let unverified = Manifest::parse(&join_chunks(record).ok()?).ok()?;
    let verify = |signer| {
        let policy = ManifestPolicy {
            max_validity: None,
            ..ManifestPolicy::for_signer(signer)
        };
        // Before any date: it may have expired.
        unverified.verify(&policy, 0)
    };
    match verify(signer) {
        Ok(manifest) => Some((manifest, signer)),
        Err(ManifestError::Signature {
            recovered: Some(other),
        }) => Some((verify(other).ok()?, other)),
        Err(_) => None,
    }
}

fn check_epoch(standing: &Manifest, own: &UnsignedManifest) -> Result<(), PublishError> {
    if standing.epoch() > own.epoch {
        return Err(PublishError::HigherEpoch {
            standing: standing.epoch(),
            own: own.epoch,
        });
    }
    let same_leader = standing.target() == own.leader_url.target()
        && standing.leader_instance() == &own.leader_instance;
    // Also if it has expired: clients remember it.
    if standing.epoch() == own.epoch && !same_leader {
        return Err(PublishError::EpochTaken { epoch: own.epoch });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use attest::manifest::SigningKey;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(digits: &str) -> SigningKey {
        SigningKey::from_hex(&digits.repeat(32)).unwrap()
    }

    fn manifest(epoch: u64) -> UnsignedManifest {
        UnsignedManifest {
            cluster: EthAddress([0xbd; 20]),
            leader_instance: "1d".repeat(20).parse().unwrap(),
            leader_url: "https://a.example:5433".parse().unwrap(),
            epoch,
            valid_until: NOW + 600,
        }
    }

    fn plan_over(records: &[String]) -> Result<Plan, PublishError> {
        let chunked = records
            .iter()
            .map(|text| text.as_bytes().chunks(255).collect());
        let records: Vec<Vec<&[u8]>> = chunked.collect();
        plan(&records, &manifest(7), key("11").address(), NOW)
    }

    fn signed(manifest: &UnsignedManifest) -> String {
        manifest.sign(&key("11")).unwrap()
    }

    #[test]
    fn own_records_are_replaced_and_others_stay() {
        let other_cluster = UnsignedManifest {
            cluster: EthAddress([1; 20]),
            ..manifest(99)
        };
        let expired = UnsignedManifest {
            valid_until: NOW - 1,
            ..manifest(5)
        };
        let forged = signed(&manifest(8)).replace("epoch=8", "epoch=9");
        let records = [
            signed(&manifest(7)),
            "v=spf1 -all".to_owned(),
            signed(&expired),
            signed(&other_cluster),
        ];
        let expected = Plan {
            replace: vec![0, 2],
            foreign_signer: None,
        };
        assert_eq!(plan_over(&records).unwrap(), expected);
        assert_eq!(plan_over(&[]).unwrap(), Plan::default());
        // It recovers to a random address, which seems to be another signer. Clients see neither.
        let plan = plan_over(&[forged]).unwrap();
        assert!(plan.replace.is_empty());
    }

    #[test]
    fn another_signer_of_the_same_cluster_is_reported() {
        let foreign = manifest(9).sign(&key("22")).unwrap();
        let expected = Plan {
            replace: vec![1],
            foreign_signer: Some(key("22").address()),
        };
        let records = [foreign, signed(&manifest(6))];
        assert_eq!(plan_over(&records).unwrap(), expected);
        let expired = UnsignedManifest {
            valid_until: NOW,
            ..manifest(9)
        };
        let expired = expired.sign(&key("22")).unwrap();
        assert_eq!(plan_over(&[expired]).unwrap(), Plan::default());
    }

    #[test]
    fn a_higher_epoch_stops_the_publication_even_if_it_has_expired() {
        let higher = UnsignedManifest {
            valid_until: NOW - 86_400,
            ..manifest(8)
        };
        let error = PublishError::HigherEpoch {
            standing: 8,
            own: 7,
        };
        assert_eq!(plan_over(&[signed(&higher)]), Err(error));
    }

    #[test]
    fn members_with_different_keys_are_noticed_also_without_a_named_cluster() {
        let (own, other) = (key("11"), key("22"));
        let named_by = |key: &SigningKey| UnsignedManifest {
            cluster: key.address(),
            ..manifest(7)
        };
        let record = named_by(&other).sign(&other).unwrap();
        let chunks: Vec<&[u8]> = record.as_bytes().chunks(255).collect();
        let plan = plan(&[chunks], &named_by(&own), own.address(), NOW).unwrap();
        assert_eq!(plan.foreign_signer, Some(other.address()));
        assert!(plan.replace.is_empty());
    }

    #[test]
    fn another_leader_of_the_same_epoch_stops_it() {
        let mut other = UnsignedManifest {
            leader_instance: "2d".repeat(20).parse().unwrap(),
            ..manifest(7)
        };
        let taken = Err(PublishError::EpochTaken { epoch: 7 });
        assert_eq!(plan_over(&[signed(&other)]), taken);
        // Clients that have seen it refuse this one also after it has expired.
        other.valid_until = NOW;
        assert_eq!(plan_over(&[signed(&other)]), taken);
        let elsewhere = UnsignedManifest {
            leader_url: "https://b.example:5433".parse().unwrap(),
            ..manifest(7)
        };
        assert_eq!(plan_over(&[signed(&elsewhere)]), taken);
    }
}
