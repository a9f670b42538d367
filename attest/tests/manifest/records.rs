//! The choice among several TXT records.

use attest::manifest::{Manifest, ManifestError, SigningKey, UnsignedManifest, newest_of};

use crate::{NOW, VALID_UNTIL, draft, key, trust};

/// The record of the golden manifest with one change.
fn record(change: impl FnOnce(&mut UnsignedManifest)) -> String {
    let mut draft = draft();
    change(&mut draft);
    draft.sign(&key()).unwrap()
}

fn of_epoch(epoch: u64) -> String {
    record(|draft| draft.epoch = epoch)
}

/// [`newest_of`] the records in every rotation, which must not matter.
fn newest(records: &[&str]) -> Result<Option<Manifest>, ManifestError> {
    let mut records = records.to_vec();
    let of = |records: &[&str]| {
        let chunks = records
            .iter()
            .map(|txt| txt.as_bytes().chunks(255).collect());
        newest_of(chunks, &trust(), NOW)
    };
    let found = of(&records);
    for _ in 0..records.len() {
        records.rotate_left(1);
        assert_eq!(of(&records), found);
        records.reverse();
        assert_eq!(of(&records), found);
        records.reverse();
    }
    found
}

fn epoch(records: &[&str]) -> u64 {
    newest(records).unwrap().unwrap().epoch()
}

#[test]
fn the_highest_valid_epoch_counts() {
    let [low, middle, high] = [41, 42, 43].map(of_epoch);
    assert_eq!(newest(&[]), Ok(None));
    assert_eq!(epoch(&[&low]), 41);
    assert_eq!(epoch(&[&low, &high, &middle]), 43);
    let expired = record(|draft| {
        draft.epoch = 99;
        draft.valid_until = NOW;
    });
    let forged = high.replace("epoch=43", "epoch=44");
    let mut foreign = draft();
    foreign.epoch = 100;
    let foreign = foreign.sign(&SigningKey::from_hex(&"22".repeat(32)).unwrap());
    let foreign = foreign.unwrap();
    let far = record(|draft| {
        draft.epoch = 101;
        draft.valid_until = NOW + 30 * 86_400;
    });
    let others = ["v=spf1 -all", "", &expired, &forged, &foreign, &far];
    for other in others {
        assert_eq!(epoch(&[&middle, other, &low]), 42, "{other}");
    }
    assert_eq!(epoch(&[&others[..], &[&middle]].concat()), 42);
}

#[test]
fn records_of_one_leader_are_joined() {
    let longer = record(|draft| draft.valid_until = VALID_UNTIL + 60);
    let short = of_epoch(42);
    let found = newest(&[&short, &longer, &short]).unwrap().unwrap();
    assert_eq!(found.valid_until(), VALID_UNTIL + 60);
}

#[test]
fn two_leaders_of_the_highest_epoch_are_refused() {
    let other = |epoch| {
        record(|draft| {
            draft.epoch = epoch;
            draft.leader_url = "https://other.example".parse().unwrap();
        })
    };
    let (one, two) = (of_epoch(42), other(42));
    let refused = Err(ManifestError::Equivocation { epoch: 42 });
    assert_eq!(newest(&[&one, &two]), refused);
    assert_eq!(newest(&[&one, &two, &of_epoch(41)]), refused);
    // A newer epoch decides.
    assert_eq!(epoch(&[&one, &two, &of_epoch(43)]), 43);
}

#[test]
fn without_a_valid_record_the_error_is_of_the_one_that_came_furthest() {
    let expired = record(|draft| draft.valid_until = NOW);
    let forged = of_epoch(42).replace("epoch=42", "epoch=44");
    let failed = |records: &[&str]| newest(records).unwrap_err().code();
    assert_eq!(failed(&["v=spf1 -all", &forged]), "manifest_signature");
    assert_eq!(failed(&["nonsense", &forged, &expired]), "manifest_expired");
    assert_eq!(failed(&["nonsense"]), "manifest_malformed");
}
