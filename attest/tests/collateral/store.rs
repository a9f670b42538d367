//! The store's rules, on a virtual clock.

use attest::collateral::{
    CaType, CollateralError, CollateralKey, Event, FetchError, Fmspc, MAX_CONCURRENT_FETCHES,
    MAX_PLATFORM_FAMILIES, Part, RequestOutcome, Schedule, Store,
};
use attest::mock::{CollateralOptions, Pki, PkiOptions, Revoked};

use super::{DAY, NOW, fresh, pki};

fn store() -> Store {
    Store::new(pki().root_der().to_vec(), Schedule::default())
}

/// A store that holds what was fresh at NOW.
fn holding() -> (Store, CollateralKey) {
    let mut store = store();
    let key = fresh(NOW).key();
    assert_eq!(store.request(key, NOW), RequestOutcome::Pending);
    assert_eq!(store.next_due(NOW), Some(key));
    let event = store.complete_fetch(key, Ok(fresh(NOW)), NOW, 0);
    let expires_at = NOW - 3_600 + 30 * DAY;
    assert_eq!(
        event,
        Event::Refreshed {
            key,
            expires_at,
            changed: true
        }
    );
    (store, key)
}

#[test]
fn nothing_that_fails_replaces_what_is_held() {
    let (mut store, key) = holding();
    let (epoch, other) = (store.snapshot().epoch(), Pki::new(&[8; 32]).unwrap());
    let later = NOW + DAY;
    let forged = other
        .parsed_collateral(&CollateralOptions::at(later))
        .unwrap();
    let expired = fresh(NOW - 60 * DAY);
    let wrong = CollateralKey {
        fmspc: Fmspc([1; 6]),
        ca: CaType::Platform,
    };
    let strange = pki()
        .parsed_collateral(&CollateralOptions::at(later).for_key(wrong))
        .unwrap();
    let mut at = later;
    for bad in [
        Ok(forged),
        Ok(expired),
        Ok(strange),
        Err(FetchError::Timeout),
    ] {
        assert_eq!(store.next_due(at), Some(key));
        let event = store.complete_fetch(key, bad, at, 0);
        let Event::Failed {
            held_until,
            retry_at,
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(held_until, Some(NOW - 3_600 + 30 * DAY));
        assert!(retry_at > at);
        assert!(matches!(store.request(key, at), RequestOutcome::Cached(_)));
        at = retry_at;
    }
    assert_eq!(store.snapshot().epoch(), epoch);
}

#[test]
fn a_pccs_cannot_bring_back_older_parts() {
    let (mut store, key) = holding();
    // Yesterday's everything is still genuine and in date, but older than what is held.
    let at = NOW + DAY;
    store.next_due(at).unwrap();
    let event = store.complete_fetch(key, Ok(fresh(NOW - DAY)), at, 0);
    let expires_at = NOW - 3_600 + 30 * DAY;
    assert_eq!(
        event,
        Event::Refreshed {
            key,
            expires_at,
            changed: false
        }
    );
    // A re-signed older evaluation loses too, however fresh its date; the new CRLs are taken.
    let old = CollateralOptions {
        evaluation_number: 16,
        ..CollateralOptions::at(at)
    };
    store.next_due(at + DAY).unwrap();
    let event = store.complete_fetch(key, Ok(pki().parsed_collateral(&old).unwrap()), at + DAY, 0);
    assert_eq!(
        event,
        Event::Refreshed {
            key,
            expires_at,
            changed: true
        }
    );
    let held = store.snapshot().get(key, at).unwrap();
    assert!(
        held.as_qvl()
            .tcb_info
            .contains(r#""tcbEvaluationDataNumber":17"#)
    );
    assert_ne!(held.as_qvl().pck_crl, fresh(NOW).as_qvl().pck_crl);
}

#[test]
fn a_newer_crl_that_revokes_the_held_signer_gets_its_way() {
    let (mut store, key) = holding();
    // Same seed, same root, and a new signer, since the root has revoked the old one.
    let options = PkiOptions {
        tcb_signer_number: 1,
        ..PkiOptions::default()
    };
    let renewed = Pki::with(&[7; 32], &options).unwrap();
    let revoked = Revoked {
        tcb_signer: true,
        ..Revoked::default()
    };
    let at = NOW + DAY;
    let month = CollateralOptions::at(NOW).tcb_info;
    // What the new signer has signed is no newer than what is held; only the CRL is.
    let options = CollateralOptions {
        revoked,
        tcb_info: month,
        qe_identity: month,
        ..CollateralOptions::at(at)
    };
    let came = renewed.parsed_collateral(&options).unwrap();
    store.next_due(at).unwrap();
    let event = store.complete_fetch(key, Ok(came.clone()), at, 0);
    assert!(
        matches!(event, Event::Refreshed { changed: true, .. }),
        "{event:?}"
    );
    assert_eq!(
        store.snapshot().get(key, at).unwrap().as_qvl(),
        came.as_qvl()
    );
    // And the old signer does not come back, neither with its old CRL nor without.
    store.next_due(at + DAY).unwrap();
    store.complete_fetch(key, Ok(fresh(NOW + 1)), at + DAY, 0);
    assert_eq!(
        store.snapshot().get(key, at).unwrap().as_qvl(),
        came.as_qvl()
    );
}

#[test]
fn what_a_revoked_signer_signed_is_not_taken() {
    let (mut store, key) = holding();
    let revoked = Revoked {
        tcb_signer: true,
        ..Revoked::default()
    };
    let options = CollateralOptions {
        revoked,
        ..CollateralOptions::at(NOW + DAY)
    };
    store.next_due(NOW + DAY).unwrap();
    let came = pki().parsed_collateral(&options).unwrap();
    let event = store.complete_fetch(key, Ok(came), NOW + DAY, 0);
    let Event::Failed { error, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!(error.code(), "revoked");
}

#[test]
fn the_epoch_changes_with_the_content_only() {
    let (mut store, key) = holding();
    assert_eq!(store.snapshot().epoch(), 1);
    store.next_due(NOW + DAY).unwrap();
    store.complete_fetch(key, Ok(fresh(NOW)), NOW + DAY, 0);
    assert_eq!(store.snapshot().epoch(), 1);
    store.next_due(NOW + 2 * DAY).unwrap();
    store.complete_fetch(key, Ok(fresh(NOW + 2 * DAY)), NOW + 2 * DAY, 0);
    assert_eq!(store.snapshot().epoch(), 2);
}

#[test]
fn one_flight_for_each_key_and_few_in_all() {
    let mut store = store();
    for number in 0..u8::try_from(MAX_CONCURRENT_FETCHES).unwrap() + 2 {
        let key = CollateralKey {
            fmspc: Fmspc([number; 6]),
            ca: CaType::Platform,
        };
        assert_eq!(store.request(key, NOW), RequestOutcome::Pending);
        assert_eq!(store.request(key, NOW), RequestOutcome::Pending);
    }
    let started: Vec<_> = std::iter::from_fn(|| store.next_due(NOW)).collect();
    assert_eq!(started.len(), MAX_CONCURRENT_FETCHES);
    let mut unique = started.clone();
    unique.dedup();
    assert_eq!(unique, started);
    store.complete_fetch(started[0], Err(FetchError::Connect), NOW, 0);
    assert!(
        store
            .next_due(NOW)
            .is_some_and(|key| !started.contains(&key))
    );
}

#[test]
fn invented_families_push_out_only_each_other() {
    let (mut store, held) = holding();
    for number in 0..1_000u16 {
        let [high, low] = number.to_be_bytes();
        let key = CollateralKey {
            fmspc: Fmspc([9, 9, 9, 9, high, low]),
            ca: CaType::Platform,
        };
        assert_eq!(
            store.request(key, NOW + u64::from(number)),
            RequestOutcome::Pending
        );
    }
    assert!(matches!(
        store.request(held, NOW),
        RequestOutcome::Cached(_)
    ));
    let mut flights = 0;
    while let Some(key) = store.next_due(NOW + DAY) {
        flights += 1;
        store.complete_fetch(key, Err(FetchError::Status(404)), NOW + DAY, 0);
    }
    assert!(flights <= MAX_PLATFORM_FAMILIES, "{flights}");
    // Nobody asks for them any more: they are not fetched again, the held one is.
    assert_eq!(store.next_due(NOW + 3 * DAY), Some(held));
    assert_eq!(store.next_due(NOW + 3 * DAY), None);
}

#[test]
fn failures_back_off_to_a_cap() {
    let schedule = Schedule::default();
    let mut store = store();
    let key = fresh(NOW).key();
    let mut at = NOW;
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert_eq!(store.request(key, at), RequestOutcome::Pending);
        assert_eq!(store.next_due(at), Some(key));
        let event = store.complete_fetch(key, Err(FetchError::Connect), at, 0);
        let Event::Failed {
            retry_at,
            held_until: None,
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        let not_before = RequestOutcome::BackingOff {
            retry_at,
            last: FetchError::Connect,
        };
        assert_eq!(store.request(key, retry_at - 1), not_before);
        assert_eq!(store.next_due(retry_at - 1), None);
        waits.push(retry_at - at);
        at = retry_at;
    }
    assert_eq!(waits, [5, 10, 20, 40, 60, 60, 60, 60]);
    let (mut store, key) = holding();
    let mut at = NOW + DAY;
    let mut wait = 0;
    for _ in 0..80 {
        assert_eq!(
            store.next_due(at),
            Some(key),
            "while something is held, without being asked"
        );
        let event = store.complete_fetch(key, Err(FetchError::Timeout), at, u32::MAX);
        let Event::Failed { retry_at, .. } = event else {
            panic!("{event:?}")
        };
        wait = retry_at - at;
        at = retry_at;
    }
    assert!(
        (schedule.max_backoff_cached * 3 / 4..=schedule.max_backoff_cached).contains(&wait),
        "{wait}"
    );
}

#[test]
fn refreshed_daily_ahead_of_the_end_and_with_jitter() {
    for random in [0, 1, 12_345, u32::MAX] {
        let (mut store, key) = holding();
        store.next_due(NOW + DAY).unwrap();
        store.complete_fetch(key, Ok(fresh(NOW + DAY)), NOW + DAY, random);
        let next = store.next_wake().unwrap();
        assert!(
            (NOW + DAY + DAY * 3 / 4..=NOW + 2 * DAY).contains(&next),
            "{random}"
        );
        assert_eq!(store.next_due(next - 1), None);
        assert_eq!(store.next_due(next), Some(key));
    }
    // The PCCS has nothing newer, and little is left: hourly, and ever more often at the end.
    let (mut store, key) = holding();
    let expires_at = fresh(NOW).expires_at();
    for (left, wait) in [(6 * DAY, 3_600), (7_200, 1_800), (8, 2), (1, 1)] {
        let at = expires_at - left;
        store.next_due(at).unwrap();
        store.complete_fetch(key, Ok(fresh(NOW)), at, 0);
        assert_eq!(
            store.next_due(at + wait - 1),
            None,
            "{left} s before the end"
        );
        assert_eq!(
            store.next_due(at + wait),
            Some(key),
            "{left} s before the end"
        );
        store.complete_fetch(key, Ok(fresh(NOW)), at, 0);
    }
}

#[test]
fn the_end_is_told_once_beforehand_and_once_when_it_comes() {
    let (mut store, key) = holding();
    let expires_at = fresh(NOW).expires_at();
    assert!(store.tick(expires_at - 3 * DAY - 1).is_empty());
    assert_eq!(
        store.tick(expires_at - 3 * DAY),
        [Event::AboutToExpire { key, expires_at }]
    );
    assert!(store.tick(expires_at - 1).is_empty());
    assert_eq!(store.tick(expires_at), [Event::Expired { key }]);
    assert!(store.tick(expires_at + 1).is_empty());
    assert!(store.snapshot().get(key, expires_at).is_none());
    assert_eq!(
        store
            .snapshot()
            .seconds_until_expiry(expires_at - 5)
            .collect::<Vec<_>>(),
        [(key, 5)]
    );
    assert_eq!(
        store
            .snapshot()
            .seconds_until_expiry(expires_at + 5)
            .collect::<Vec<_>>(),
        [(key, 0)]
    );
    // Fetched anew, it may be told again.
    assert_eq!(store.request(key, expires_at), RequestOutcome::Pending);
    store.next_due(expires_at).unwrap();
    store.complete_fetch(key, Ok(fresh(expires_at)), expires_at, 0);
    assert!(matches!(
        store.request(key, expires_at),
        RequestOutcome::Cached(_)
    ));
    assert_eq!(store.tick(expires_at + 27 * DAY).len(), 1);
}

#[test]
fn offered_collateral_is_verified_like_fetched() {
    let mut store = store();
    let event = store.import(fresh(NOW), NOW, 0).unwrap();
    assert!(matches!(event, Event::Refreshed { changed: true, .. }));
    assert_eq!(store.snapshot().epoch(), 1);
    let forged = Pki::new(&[8; 32]).unwrap();
    let forged = forged
        .parsed_collateral(&CollateralOptions::at(NOW))
        .unwrap();
    assert_eq!(
        store.import(forged, NOW, 0).unwrap_err().code(),
        "bad_signature"
    );
    assert_eq!(
        store
            .import(fresh(NOW - 60 * DAY), NOW, 0)
            .unwrap_err()
            .code(),
        "expired"
    );
    assert_eq!(store.snapshot().epoch(), 1);
}

#[test]
fn every_code_is_of_the_closed_list() {
    let part = Part::Root;
    for (error, code) in [
        (CollateralError::NotTdx, "not_tdx"),
        (CollateralError::BadSignature { part }, "bad_signature"),
        (CollateralError::WrongKey, "wrong_key"),
        (CollateralError::StoreFull, "store_full"),
    ] {
        assert_eq!(error.code(), code);
        assert_eq!(FetchError::from(error).code(), code);
    }
    assert_eq!(FetchError::Status(503).code(), "status");
}
