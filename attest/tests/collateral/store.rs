//! The store's rules, tested with a virtual clock.

use attest::collateral::{
    CaType, CollateralError, CollateralKey, Event, FetchError, Fmspc, MAX_CONCURRENT_FETCHES,
    MAX_PLATFORM_FAMILIES, Part, RequestOutcome, Schedule, Store,
};
use attest::mock::{CollateralOptions, Pki, PkiOptions, Revoked};

use super::{DAY, NOW, fresh, pki};

fn store() -> Store {
    Store::new(pki().root_der().to_vec(), Schedule::default())
}

/// A store with collateral that was issued at `NOW`, whose family has a session that never ends.
fn filled_store() -> (Store, CollateralKey) {
    let (store, key) = unused_store();
    std::mem::forget(store.snapshot().usage(key).unwrap().begin(NOW));
    (store, key)
}

/// The same without a session.
fn unused_store() -> (Store, CollateralKey) {
    let mut store = store();
    let key = fresh(NOW).key();
    assert_eq!(store.request(key, NOW), RequestOutcome::Pending);
    assert_eq!(store.next_due(NOW), Some(key));
    let event = store.complete_fetch(key, Ok(fresh(NOW)), NOW, 0);
    let (valid_from, expires_at) = (NOW - 3_600, NOW - 3_600 + 30 * DAY);
    assert_eq!(
        event,
        Event::Refreshed {
            key,
            valid_from,
            expires_at,
            changed: true
        }
    );
    (store, key)
}

#[test]
fn failed_fetches_do_not_replace_collateral() {
    let (mut store, key) = filled_store();
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
    let other_key = pki()
        .parsed_collateral(&CollateralOptions::at(later).for_key(wrong))
        .unwrap();
    let mut at = later;
    for bad in [
        Ok(forged),
        Ok(expired),
        Ok(other_key),
        Err(FetchError::Timeout),
    ] {
        assert_eq!(store.next_due(at), Some(key));
        let event = store.complete_fetch(key, bad, at, 0);
        let Event::Failed {
            cached_until,
            retry_at,
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(cached_until, Some(NOW - 3_600 + 30 * DAY));
        assert!(retry_at > at);
        assert!(matches!(store.request(key, at), RequestOutcome::Cached(_)));
        at = retry_at;
    }
    assert_eq!(store.snapshot().epoch(), epoch);
}

#[test]
fn older_parts_are_not_stored() {
    let (mut store, key) = filled_store();
    // Yesterday's collateral is genuine and still valid, but older than the stored one.
    let at = NOW + DAY;
    store.next_due(at).unwrap();
    let event = store.complete_fetch(key, Ok(fresh(NOW - DAY)), at, 0);
    let (valid_from, expires_at) = (NOW - 3_600, NOW - 3_600 + 30 * DAY);
    assert_eq!(
        event,
        Event::Refreshed {
            key,
            valid_from,
            expires_at,
            changed: false
        }
    );
    // An older TCB evaluation is not stored either, although its date is newer. Its CRLs are stored.
    let old = CollateralOptions {
        evaluation_number: 16,
        ..CollateralOptions::at(at)
    };
    store.next_due(at + DAY).unwrap();
    let event = store.complete_fetch(key, Ok(pki().parsed_collateral(&old).unwrap()), at + DAY, 0);
    let valid_from = at - 3_600;
    assert_eq!(
        event,
        Event::Refreshed {
            key,
            valid_from,
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
fn newer_crl_that_revokes_the_stored_signer_is_stored() {
    let (mut store, key) = filled_store();
    // The same root, and a new signer because the root has revoked the old one.
    let options = PkiOptions {
        tcb_signer_number: 1,
        ..PkiOptions::default()
    };
    let renewed = Pki::with_options(&[7; 32], &options).unwrap();
    let revoked = Revoked {
        tcb_signer: true,
        ..Revoked::default()
    };
    let at = NOW + DAY;
    let month = CollateralOptions::at(NOW).tcb_info;
    // Only the CRL is newer than the stored one.
    let options = CollateralOptions {
        revoked,
        tcb_info: month,
        qe_identity: month,
        ..CollateralOptions::at(at)
    };
    let fetched = renewed.parsed_collateral(&options).unwrap();
    store.next_due(at).unwrap();
    let event = store.complete_fetch(key, Ok(fetched.clone()), at, 0);
    assert!(
        matches!(event, Event::Refreshed { changed: true, .. }),
        "{event:?}"
    );
    assert_eq!(
        store.snapshot().get(key, at).unwrap().as_qvl(),
        fetched.as_qvl()
    );
    // Documents of the revoked signer are not stored, with or without the old CRL.
    store.next_due(at + DAY).unwrap();
    store.complete_fetch(key, Ok(fresh(NOW + 1)), at + DAY, 0);
    assert_eq!(
        store.snapshot().get(key, at).unwrap().as_qvl(),
        fetched.as_qvl()
    );
}

#[test]
fn documents_of_a_revoked_signer_are_refused() {
    let (mut store, key) = filled_store();
    let revoked = Revoked {
        tcb_signer: true,
        ..Revoked::default()
    };
    let options = CollateralOptions {
        revoked,
        ..CollateralOptions::at(NOW + DAY)
    };
    store.next_due(NOW + DAY).unwrap();
    let fetched = pki().parsed_collateral(&options).unwrap();
    let event = store.complete_fetch(key, Ok(fetched), NOW + DAY, 0);
    let Event::Failed { error, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!(error.code(), "revoked");
}

/// What the trusted root has signed exists, so a clock that is before its date is slow.
#[test]
fn collateral_is_accepted_by_a_clock_that_is_slow() {
    let year_ago = NOW - 365 * DAY;
    let mut store = store();
    let event = store.import(fresh(NOW), year_ago, 0).unwrap();
    let Event::Refreshed { valid_from, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!(valid_from, NOW - 3_600);
    let key = fresh(NOW).key();
    assert!(store.snapshot().get(key, year_ago).is_none());
    assert!(store.snapshot().get(key, valid_from).is_some());
    let forged = Pki::new(&[8; 32]).unwrap();
    let forged = forged.parsed_collateral(&CollateralOptions::at(NOW + DAY));
    let refused = store.import(forged.unwrap(), year_ago, 0).unwrap_err();
    assert_eq!(refused.code(), "bad_signature");
}

#[test]
fn epoch_changes_only_with_the_content() {
    let (mut store, key) = filled_store();
    assert_eq!(store.snapshot().epoch(), 1);
    store.next_due(NOW + DAY).unwrap();
    store.complete_fetch(key, Ok(fresh(NOW)), NOW + DAY, 0);
    assert_eq!(store.snapshot().epoch(), 1);
    store.next_due(NOW + 2 * DAY).unwrap();
    store.complete_fetch(key, Ok(fresh(NOW + 2 * DAY)), NOW + 2 * DAY, 0);
    assert_eq!(store.snapshot().epoch(), 2);
}

#[test]
fn fetches_are_deduplicated_and_limited() {
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
fn unknown_platforms_evict_only_each_other() {
    let (mut store, held) = filled_store();
    for number in 0..1_000u16 {
        let [high, low] = number.to_be_bytes();
        let key = CollateralKey {
            fmspc: Fmspc([9, 9, 9, 9, high, low]),
            ca: CaType::Platform,
        };
        let at = NOW + u64::from(number);
        assert_eq!(store.request(key, at), RequestOutcome::Pending);
        assert_eq!(store.next_due(at), Some(key));
        store.complete_fetch(key, Err(FetchError::Status(404)), at, 0);
    }
    assert!(matches!(
        store.request(held, NOW),
        RequestOutcome::Cached(_)
    ));
    // Without new requests they are not fetched again, but stored collateral is.
    assert_eq!(store.next_due(NOW + 3 * DAY), Some(held));
    assert_eq!(store.next_due(NOW + 3 * DAY), None);
}

/// Who waits for a fetch that was forgotten would wait for ever.
#[test]
fn families_that_are_waited_for_stay() {
    let mut store = store();
    let family = |number: u8| CollateralKey {
        fmspc: Fmspc([number; 6]),
        ca: CaType::Platform,
    };
    let families = u8::try_from(MAX_PLATFORM_FAMILIES).unwrap();
    for number in 0..families {
        assert_eq!(store.request(family(number), NOW), RequestOutcome::Pending);
    }
    let new = family(families);
    assert_eq!(store.request(new, NOW + 60), RequestOutcome::Full);
    let due = store.next_due(NOW + 60).unwrap();
    assert_eq!(store.request(new, NOW + 60), RequestOutcome::Full);
    store.complete_fetch(due, Err(FetchError::Timeout), NOW + 60, 0);
    // The one whose fetch has failed, so that no connection waits for it.
    assert_eq!(store.request(new, NOW + 60), RequestOutcome::Pending);
    let mut fetched = 0;
    while let Some(key) = store.next_due(NOW + 60) {
        assert_ne!(key, due);
        store.complete_fetch(key, Err(FetchError::Timeout), NOW + 60, 0);
        fetched += 1;
    }
    assert_eq!(fetched, MAX_PLATFORM_FAMILIES);
}

#[test]
fn failed_fetches_back_off_exponentially_up_to_a_cap() {
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
            cached_until: None,
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
    let (mut store, key) = filled_store();
    let mut at = NOW + DAY;
    let mut wait = 0;
    for _ in 0..80 {
        assert_eq!(
            store.next_due(at),
            Some(key),
            "stored collateral is refreshed without requests"
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
fn collateral_is_refreshed_daily_with_jitter_and_more_often_before_expiry() {
    for random in [0, 1, 12_345, u32::MAX] {
        let (mut store, key) = filled_store();
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
    // If the PCCS has nothing newer: hourly, and more often shortly before expiry.
    let (mut store, key) = filled_store();
    let expires_at = fresh(NOW).expires_at();
    for (left, wait) in [(6 * DAY, 3_600), (7_200, 1_800), (8, 2), (1, 1)] {
        let at = expires_at - left;
        store.next_due(at).unwrap();
        store.complete_fetch(key, Ok(fresh(NOW)), at, 0);
        assert_eq!(
            store.next_due(at + wait - 1),
            None,
            "{left} s before expiry"
        );
        assert_eq!(
            store.next_due(at + wait),
            Some(key),
            "{left} s before expiry"
        );
        store.complete_fetch(key, Ok(fresh(NOW)), at, 0);
    }
}

/// A clock that was set forward and back again: without a limit the next attempt would be years away.
#[test]
fn a_clock_that_was_set_back_does_not_put_an_attempt_off() {
    let (mut store, key) = filled_store();
    let future = NOW + 3_650 * DAY;
    assert_eq!(store.next_due(future), Some(key));
    store.complete_fetch(key, Err(FetchError::Timeout), future, 0);
    assert_eq!(store.next_due(NOW + 60), None);
    assert_eq!(store.next_due(NOW + 60 + 3_600), Some(key));
    let event = store.complete_fetch(key, Ok(fresh(NOW)), NOW + 60 + 3_600, 0);
    assert!(matches!(event, Event::Refreshed { .. }), "{event:?}");

    // The same without collateral: peers wait for it.
    let (mut store, key) = (self::store(), fresh(NOW).key());
    assert_eq!(store.request(key, future), RequestOutcome::Pending);
    assert_eq!(store.next_due(future), Some(key));
    store.complete_fetch(key, Err(FetchError::Timeout), future, 0);
    let outcome = store.request(key, NOW);
    assert!(matches!(outcome, RequestOutcome::BackingOff { .. }));
    assert_eq!(store.request(key, NOW + 60), RequestOutcome::Pending);
    assert_eq!(store.next_due(NOW + 60), Some(key));
}

#[test]
fn collateral_that_a_policy_refuses_is_refreshed_once_a_minute() {
    // It has no sessions, and the next refresh is due tomorrow.
    let (mut store, key) = unused_store();
    store.refresh(key, NOW + 30);
    assert_eq!(store.next_due(NOW + 59), None);
    assert_eq!(store.next_due(NOW + 60), Some(key));
    store.complete_fetch(key, Ok(fresh(NOW)), NOW + 60, 0);
    store.refresh(key, NOW + 61);
    store.refresh(key, NOW + 62);
    assert_eq!(store.next_due(NOW + 119), None);
    assert_eq!(store.next_due(NOW + 120), Some(key));
    // Of a family without collateral it does nothing.
    let mut store = self::store();
    store.refresh(key, NOW);
    assert_eq!(store.next_due(NOW), None);
}

#[test]
fn expiry_is_announced_once_ahead_and_once_when_it_occurs() {
    let (mut store, key) = filled_store();
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
    // After a new fetch it is announced again.
    assert_eq!(store.request(key, expires_at), RequestOutcome::Pending);
    store.next_due(expires_at).unwrap();
    store.complete_fetch(key, Ok(fresh(expires_at)), expires_at, 0);
    assert!(matches!(
        store.request(key, expires_at),
        RequestOutcome::Cached(_)
    ));
    assert_eq!(store.tick(expires_at + 27 * DAY).len(), 1);
}

/// How many families concern `/ready`.
fn left_of(store: &Store, now: u64) -> usize {
    store.snapshot().seconds_until_expiry(now).count()
}

/// The family of a visitor is refreshed for a day, and expires without a message to the operator.
#[test]
fn families_without_sessions_are_not_refreshed_and_expire_silently() {
    let (mut store, key) = unused_store();
    let session = store.snapshot().usage(key).unwrap().begin(NOW + 60);
    let next = store.next_wake().unwrap();
    assert_eq!(store.next_due(next), Some(key));
    store.complete_fetch(key, Ok(fresh(NOW)), next, 0);
    drop(session);
    assert_eq!(store.next_due(NOW + 3 * DAY), None, "it was not used");

    let expires_at = fresh(NOW).expires_at();
    assert!(store.tick(expires_at - 1).is_empty());
    assert_eq!(left_of(&store, expires_at), 0, "/ready does not need it");
    assert!(store.tick(expires_at).is_empty());
    // The next visitor causes a fetch.
    assert_eq!(store.request(key, expires_at), RequestOutcome::Pending);
    assert_eq!(store.next_due(expires_at), Some(key));
}

#[test]
fn a_family_with_a_session_is_kept_and_announced() {
    let (mut store, key) = unused_store();
    let session = store.snapshot().usage(key).unwrap().begin(NOW);
    let expires_at = fresh(NOW).expires_at();
    assert_eq!(store.tick(expires_at), [Event::Expired { key }]);
    let left: Vec<_> = store.snapshot().seconds_until_expiry(expires_at).collect();
    assert_eq!(left, [(key, 0)]);
    assert_eq!(store.next_due(expires_at), Some(key), "it is fetched again");
    drop(session);
    assert_eq!(left_of(&store, expires_at), 0);
}

#[test]
fn families_that_were_not_used_for_a_day_make_room() {
    let mut store = store();
    let family = |number: u8| CollateralKey {
        fmspc: Fmspc([number; 6]),
        ca: CaType::Platform,
    };
    let collateral = |number| {
        let options = CollateralOptions::at(NOW).for_key(family(number));
        pki().parsed_collateral(&options).unwrap()
    };
    let families = u8::try_from(MAX_PLATFORM_FAMILIES).unwrap();
    for number in 0..families {
        let at = NOW + u64::from(number);
        store.import(collateral(number), at, 0).unwrap();
    }
    let first = store.snapshot().usage(family(0)).unwrap().begin(NOW);
    let new = family(families);
    assert_eq!(store.request(new, NOW + 60), RequestOutcome::Full);
    // A day later all are unused, except for the first, which has a session.
    assert_eq!(store.request(new, NOW + 63 + DAY), RequestOutcome::Pending);
    let held = |store: &Store, number| store.snapshot().usage(family(number)).is_some();
    assert!(held(&store, 0) && !held(&store, 1) && held(&store, 2));
    drop(first);
}

#[test]
fn offered_collateral_is_verified() {
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
fn error_codes_are_stable() {
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
