//! The verdict cache: keys, lifetimes, epochs, capacity.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use attest::cache::{Capacity, DENIAL_TTL, Epoch, Verdict, VerdictCache};
use attest::chain::Chain;
use attest::mock::{Certificate, Fixture, Validity};
use attest::{Denial, Policy};

use crate::NOW;
use crate::policy_with;

const TTL: u64 = 600;

fn epoch(policy: &Policy) -> Epoch {
    Epoch {
        policy: policy.epoch(),
        collateral: 0,
    }
}

fn capacity(admissions: usize) -> Capacity {
    Capacity {
        admissions,
        ..Capacity::default()
    }
}

fn chain(certificate: &Certificate) -> Chain {
    Chain::copy(&certificate.chain_der()).unwrap()
}

fn verdict_of(fixture: &Fixture, certificate: &Certificate) -> Verdict {
    fixture.verify_chain(&certificate.chain_der()).map(Arc::new)
}

/// A hasher under which all leaves collide.
#[derive(Clone)]
struct Collide;

impl BuildHasher for Collide {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self
    }
}

impl Hasher for Collide {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, _: &[u8]) {}
}

#[test]
fn verdict_is_found_only_by_its_exact_chain() {
    let fixture = Fixture::default();
    let (one, two) = (fixture.certificate_of("one"), fixture.certificate_of("two"));
    let epoch = epoch(&fixture.policy);
    let mut cache = VerdictCache::new(capacity(8), TTL, epoch);
    assert!(cache.is_empty());
    cache.insert(epoch, &chain(&one), &verdict_of(&fixture, &one), NOW);
    assert!(cache.get(epoch, &one.chain_der(), NOW).unwrap().is_ok());
    assert!(cache.get(epoch, &two.chain_der(), NOW).is_none());
    assert!(
        cache.get(epoch, &one.chain_der()[..1], NOW).is_none(),
        "another chain"
    );
    let none: [&[u8]; 0] = [];
    assert!(cache.get(epoch, &none, NOW).is_none());
    for byte in 0..one.der().len() {
        let mut flipped = one.der().to_vec();
        flipped[byte] ^= 1;
        let presented = [&flipped[..], one.chain_der()[1]];
        assert!(cache.get(epoch, &presented, NOW).is_none(), "byte {byte}");
    }
}

/// A collision causes a miss, and never a wrong verdict.
#[test]
fn collisions_never_give_a_wrong_verdict() {
    let fixture = Fixture::default();
    let (one, two) = (fixture.certificate_of("one"), fixture.certificate_of("two"));
    let epoch = epoch(&fixture.policy);
    let mut cache = VerdictCache::with_hasher(capacity(8), TTL, epoch, Collide);
    cache.insert(epoch, &chain(&one), &verdict_of(&fixture, &one), NOW);
    assert!(cache.get(epoch, &two.chain_der(), NOW).is_none());
    cache.insert(epoch, &chain(&two), &verdict_of(&fixture, &two), NOW);
    assert!(cache.get(epoch, &one.chain_der(), NOW).is_none());
    let cached = cache.get(epoch, &two.chain_der(), NOW).unwrap().unwrap();
    assert_eq!(cached.fingerprint(), chain(&two).fingerprint());
}

#[test]
fn verdict_lives_until_the_earliest_expiry() {
    let lifetime = |until, ttl| {
        let fixture = Fixture::with(|f| {
            f.leaf.validity = Validity {
                from: NOW - 60,
                until,
            }
        });
        let certificate = fixture.certificate();
        let epoch = epoch(&fixture.policy);
        let mut cache = VerdictCache::new(capacity(8), ttl, epoch);
        cache.insert(
            epoch,
            &chain(&certificate),
            &verdict_of(&fixture, &certificate),
            NOW,
        );
        (NOW..)
            .find(|now| cache.get(epoch, &certificate.chain_der(), *now).is_none())
            .unwrap()
            - NOW
    };
    assert_eq!(lifetime(NOW + 10_000, TTL), TTL, "the TTL");
    assert_eq!(
        lifetime(NOW + 9, TTL),
        10,
        "the certificate, including its last second"
    );
    let collateral = Fixture::default().issue_collateral().expires_at();
    assert_eq!(
        lifetime(NOW + 100 * 86_400, u64::MAX),
        collateral - NOW,
        "the collateral"
    );
}

#[test]
fn another_epoch_clears_the_cache() {
    let fixture = Fixture::default();
    let certificate = fixture.certificate();
    let (chain, verdict) = (chain(&certificate), verdict_of(&fixture, &certificate));
    let first = epoch(&fixture.policy);
    let mut cache = VerdictCache::new(capacity(8), TTL, first);
    let collateral = Epoch {
        collateral: 1,
        ..first
    };
    let policy = epoch(&policy_with(|s| s.allow_debug_td = true));
    for other in [collateral, policy] {
        cache.set_epoch(first);
        cache.insert(first, &chain, &verdict, NOW);
        cache.insert(first, &chain, &Err(Denial::BadSignature), NOW);
        assert_eq!(cache.len(), (1, 1));
        assert!(cache.get(other, &certificate.chain_der(), NOW).is_none());
        assert!(cache.is_empty());
        cache.insert(first, &chain, &verdict, NOW);
        assert!(cache.is_empty(), "a verdict of an earlier epoch");
    }
}

#[test]
fn peer_denials_are_short_lived_and_own_failures_are_not_cached() {
    let fixture = Fixture::default();
    let certificate = fixture.certificate();
    let epoch = epoch(&fixture.policy);
    let mut cache = VerdictCache::new(capacity(8), TTL, epoch);
    let chain = chain(&certificate);
    for ours in [
        Denial::CollateralUnavailable,
        Denial::CollateralExpired,
        Denial::Overloaded,
    ] {
        cache.insert(epoch, &chain, &Err(ours), NOW);
        assert!(cache.is_empty());
    }
    cache.insert(epoch, &chain, &Err(Denial::BadSignature), NOW);
    let mut get = |now| cache.get(epoch, &certificate.chain_der(), now);
    assert_eq!(
        get(NOW + DENIAL_TTL - 1).unwrap().unwrap_err(),
        Denial::BadSignature
    );
    assert!(get(NOW + DENIAL_TTL).is_none());
}

#[test]
fn capacity_is_bounded_and_recently_used_entries_stay() {
    const CAPACITY: usize = 16;
    let fixture = Fixture::default();
    let certificate = fixture.certificate();
    let epoch = epoch(&fixture.policy);
    let mut cache = VerdictCache::new(capacity(CAPACITY), TTL, epoch);
    let verdict = verdict_of(&fixture, &certificate);
    cache.insert(epoch, &chain(&certificate), &verdict, NOW);
    // The other leaves need not be certificates: the cache does not parse them.
    for n in 0..1000u32 {
        assert!(
            cache.get(epoch, &certificate.chain_der(), NOW).is_some(),
            "after {n} others"
        );
        let other = Chain::copy(&[n.to_le_bytes()]).unwrap();
        cache.insert(epoch, &other, &verdict, NOW);
        cache.insert(epoch, &other, &Err(Denial::BadSignature), NOW);
        let (admissions, denials) = cache.len();
        assert!(admissions <= CAPACITY && denials <= CAPACITY / 8);
    }
    let newest = Chain::copy(&[999u32.to_le_bytes()]).unwrap();
    assert!(
        cache
            .get(epoch, newest.certificates(), NOW)
            .unwrap()
            .is_ok()
    );
}

/// Admissions stay within the budget of bytes, and the oldest make room.
#[test]
fn admissions_stay_within_their_budget_of_bytes() {
    const LEN: usize = 60 << 10;
    let fixture = Fixture::default();
    let verdict = verdict_of(&fixture, &fixture.certificate());
    let epoch = epoch(&fixture.policy);
    let capacity = Capacity {
        admissions: 1000,
        bytes: 1 << 20,
    };
    let mut cache = VerdictCache::new(capacity, TTL, epoch);
    // The leaves need not be certificates: the cache does not parse them.
    let leaf = |n: u32, len: usize| {
        let mut leaf = vec![0; len];
        leaf[..4].copy_from_slice(&n.to_le_bytes());
        Chain::copy(&[leaf]).unwrap()
    };
    for n in 0..100 {
        cache.insert(epoch, &leaf(n, LEN), &verdict, NOW);
        assert!(cache.bytes() <= capacity.bytes, "{}", cache.bytes());
        let newest = leaf(n, LEN);
        assert!(cache.get(epoch, newest.certificates(), NOW).is_some());
    }
    assert_eq!(cache.len(), (capacity.bytes / (LEN + 1100), 0));
    let old = leaf(0, LEN);
    assert!(cache.get(epoch, old.certificates(), NOW).is_none());
    // A small one evicts no more than it needs.
    let before = cache.len().0;
    cache.insert(epoch, &leaf(1000, 100), &verdict, NOW);
    assert!(cache.len().0 >= before);
    // The same certificate again counts once.
    let bytes = cache.bytes();
    cache.insert(epoch, &leaf(1000, 100), &verdict, NOW);
    assert_eq!(cache.bytes(), bytes);
    cache.set_epoch(Epoch {
        collateral: 1,
        ..epoch
    });
    assert_eq!(cache.bytes(), 0);
    // What exceeds the budget alone is not cached.
    let capacity = Capacity {
        admissions: 1000,
        bytes: LEN,
    };
    let mut small = VerdictCache::new(capacity, TTL, epoch);
    small.insert(epoch, &leaf(0, LEN), &verdict, NOW);
    assert!(small.is_empty());
}

/// Of a refused peer's certificates only a hash is kept, of all of them.
#[test]
fn denials_are_found_only_by_their_exact_chain() {
    let fixture = Fixture::default();
    let epoch = epoch(&fixture.policy);
    let mut cache = VerdictCache::new(capacity(8), TTL, epoch);
    let denial = Err(Denial::BadSignature);
    let refused = Chain::copy(&[vec![1; 60_000], vec![2; 500]]).unwrap();
    cache.insert(epoch, &refused, &denial, NOW);
    assert_eq!((cache.len(), cache.bytes()), ((0, 1), 0));
    let get = |cache: &mut VerdictCache, chain: &[&[u8]]| cache.get(epoch, chain, NOW);
    let (leaf, issuer) = (vec![1; 60_000], vec![2; 500]);
    assert_eq!(
        get(&mut cache, &[&leaf, &issuer]).unwrap().unwrap_err(),
        Denial::BadSignature
    );
    assert!(get(&mut cache, &[&leaf]).is_none());
    assert!(get(&mut cache, &[&leaf, &issuer[1..]]).is_none());
    // A byte that the index does not hash.
    let mut other = leaf.clone();
    other[30_000] ^= 1;
    assert!(get(&mut cache, &[&other, &issuer]).is_none());
}

#[test]
fn a_sweep_removes_what_has_expired() {
    let fixture = Fixture::default();
    let verdict = verdict_of(&fixture, &fixture.certificate());
    let epoch = epoch(&fixture.policy);
    let mut cache = VerdictCache::new(Capacity::default(), TTL, epoch);
    let insert = |cache: &mut VerdictCache, n: u32, now| {
        let chain = Chain::copy(&[n.to_le_bytes()]).unwrap();
        cache.insert(epoch, &chain, &verdict, now);
        cache.insert(epoch, &chain, &Err(Denial::BadSignature), now);
    };
    let sweep = |cache: &mut VerdictCache, now| {
        while !cache.sweep(now) {}
        cache.len()
    };
    for n in 0..1000 {
        insert(&mut cache, n, NOW + u64::from(n % 2) * 100);
    }
    assert_eq!(cache.len(), (1000, 512));
    assert!(!cache.sweep(NOW), "one call looks at a part of the slots");
    assert_eq!(sweep(&mut cache, NOW + TTL - 1), (1000, 0));
    assert_eq!(sweep(&mut cache, NOW + TTL), (500, 0));
    let chain = |n: u32| [n.to_le_bytes()];
    for n in 0..1000 {
        let found = cache.get(epoch, &chain(n), NOW + TTL).is_some();
        assert_eq!(found, n % 2 == 1, "{n}");
    }
    let bytes = cache.bytes();
    assert_eq!(sweep(&mut cache, NOW + TTL + 100), (0, 0));
    assert!(bytes > 0 && cache.bytes() == 0);
}

/// For scripts/instructions: valgrind counts the instructions inside `measured`.
mod instructions {
    use super::*;

    #[inline(never)]
    fn measured(work: impl FnOnce()) {
        work();
    }

    #[test]
    #[ignore = "for scripts/instructions"]
    fn attest_cache_hit() {
        let fixture = Fixture::default();
        let certificate = fixture.certificate_of("one");
        let epoch = epoch(&fixture.policy);
        let mut cache = VerdictCache::new(capacity(8), TTL, epoch);
        let verdict = verdict_of(&fixture, &certificate);
        cache.insert(epoch, &chain(&certificate), &verdict, NOW);
        let presented = certificate.chain_der();
        measured(|| {
            for _ in 0..100 {
                assert!(cache.get(epoch, &presented, NOW).is_some());
            }
        });
    }

    #[test]
    #[ignore = "for scripts/instructions"]
    fn attest_examine() {
        let fixture = Fixture::default();
        let certificate = fixture.certificate_of("one");
        let presented = certificate.chain_der();
        measured(|| {
            for _ in 0..100 {
                assert!(attest::examine(&presented, NOW, &fixture.policy).is_ok());
            }
        });
    }
}
