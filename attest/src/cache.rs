//! A bounded cache of verdicts with CLOCK replacement (second chance).
//!
//! [`VerdictCache`] is for one thread: it has no lock and reads no clock. On the verify thread, where
//! verifications run one after the other, many connections with the same certificate cost one verification.
//!
//! **Key.** A verdict applies to the same chain, byte for byte, under the same policy and collateral. A
//! SHA-256 of a dstack chain would take about 5 µs, and a hit may take 1 µs. So the slot is found by SipHash,
//! with a random key of this process, over the parts of the leaf that differ between certificates: serial,
//! names, dates and key at the start, the issuer's signature at the end, and the length. Then every byte is
//! compared. Two certificates with the same hash evict each other, but never get each other's verdict. To
//! evict another peer's verdict on purpose, a certificate needs that peer's public key, and the handshake
//! needs the private key.
//!
//! **Eviction by peers.** Any quote suffices to add a denial; an admission needs a genuine one. Denials have
//! separate slots, so they cannot evict admissions.
//!
//! What it must never do: return a verdict for other bytes, or for another policy or collateral.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use crate::chain::Chain;
use crate::denial::{Denial, Fault};
use crate::policy::PolicyEpoch;
use crate::verify::AttestedPeer;

/// The outcome of a verification.
pub type Verdict = Result<Arc<AttestedPeer>, Denial>;

/// Maximum time that a denial is cached, in seconds: long enough that immediate retries cost nothing, short
/// enough that a peer whose fault was repaired is admitted soon.
pub const DENIAL_TTL: u64 = 5;

/// Slots for admissions per slot for denials.
const ADMISSIONS_PER_DENIAL: usize = 8;

/// Hashed bytes at the start of the leaf: in a dstack leaf the key ends before byte 350.
const HASHED_HEAD: usize = 512;
/// Hashed bytes at the end of the leaf: an ECDSA P-256 signature has up to 72.
const HASHED_TAIL: usize = 72;

/// What verdicts depend on in addition to the certificate. A change empties the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// The policy.
    pub policy: PolicyEpoch,
    /// The number of changes of the cached collateral.
    pub collateral: u64,
}

/// The cached verdicts of one thread.
pub struct VerdictCache<S = RandomState> {
    epoch: Epoch,
    ttl: u64,
    admissions: ClockCache,
    denials: ClockCache,
    hasher: S,
}

impl VerdictCache {
    /// An empty cache for `capacity` admissions, each for at most `ttl` seconds. The hash has a random key,
    /// like that of a `HashMap`.
    #[must_use]
    pub fn new(capacity: usize, ttl: u64, epoch: Epoch) -> Self {
        Self::with_hasher(capacity, ttl, epoch, RandomState::new())
    }
}

impl<S: BuildHasher> VerdictCache<S> {
    /// As [`VerdictCache::new`], with another hasher.
    #[must_use]
    pub fn with_hasher(capacity: usize, ttl: u64, epoch: Epoch, hasher: S) -> Self {
        Self {
            epoch,
            ttl,
            admissions: ClockCache::new(capacity),
            denials: ClockCache::new(capacity.div_ceil(ADMISSIONS_PER_DENIAL)),
            hasher,
        }
    }

    /// The verdict about the presented chain, if one is cached that is valid at `now` in `epoch`. A new epoch
    /// empties the cache first.
    pub fn get(
        &mut self,
        epoch: Epoch,
        presented: &[impl AsRef<[u8]>],
        now: u64,
    ) -> Option<Verdict> {
        self.set_epoch(epoch);
        let hash = self.hash(presented.first()?.as_ref());
        match self.admissions.get(hash, presented, now) {
            Some(verdict) => Some(verdict),
            None => self.denials.get(hash, presented, now),
        }
    }

    /// Caches a verdict of `epoch`. Does nothing if the cache has another epoch by now, or if the denial is
    /// this side's fault.
    pub fn insert(&mut self, epoch: Epoch, chain: &Chain, verdict: &Verdict, now: u64) {
        let Some(leaf) = chain.certificates().first() else {
            return;
        };
        if epoch != self.epoch {
            return;
        }
        let (slots, until) = match verdict {
            Ok(peer) => {
                let end = peer.valid_until().saturating_add(1);
                (&mut self.admissions, end.min(now.saturating_add(self.ttl)))
            }
            Err(denial) if denial.fault() == Fault::Ours => return,
            Err(_) => {
                let ttl = DENIAL_TTL.min(self.ttl);
                (&mut self.denials, now.saturating_add(ttl))
            }
        };
        let hash = hash_leaf(&self.hasher, leaf);
        slots.insert(
            hash,
            Entry {
                chain: chain.clone(),
                verdict: verdict.clone(),
                until,
            },
            now,
        );
    }

    /// Sets the epoch. A new one empties the cache.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.admissions.clear();
            self.denials.clear();
        }
    }

    /// Number of cached verdicts: admissions and denials.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.admissions.index.len(), self.denials.index.len())
    }

    /// Whether no verdict is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    fn hash(&self, leaf: &[u8]) -> u64 {
        hash_leaf(&self.hasher, leaf)
    }
}

fn hash_leaf(hasher: &impl BuildHasher, leaf: &[u8]) -> u64 {
    let mut hash = hasher.build_hasher();
    leaf.len().hash(&mut hash);
    hash.write(leaf.get(..HASHED_HEAD).unwrap_or(leaf));
    let tail = leaf.len().saturating_sub(HASHED_TAIL);
    hash.write(leaf.get(tail..).unwrap_or_default());
    hash.finish()
}

impl<S> fmt::Debug for VerdictCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerdictCache")
            .field("epoch", &self.epoch)
            .field("admissions", &self.admissions.index.len())
            .field("denials", &self.denials.index.len())
            .finish_non_exhaustive()
    }
}

/// A bounded map with CLOCK replacement: an entry that was used since the hand last passed it gets a second
/// chance.
struct ClockCache {
    capacity: usize,
    index: HashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
}

struct Slot {
    hash: u64,
    entry: Entry,
    used: bool,
}

struct Entry {
    chain: Chain,
    verdict: Verdict,
    /// The first second at which the verdict is invalid.
    until: u64,
}

impl ClockCache {
    fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            index: HashMap::new(),
            slots: Vec::new(),
            hand: 0,
        }
    }

    fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
        self.hand = 0;
    }

    fn get(&mut self, hash: u64, presented: &[impl AsRef<[u8]>], now: u64) -> Option<Verdict> {
        let slot = self.slots.get_mut(*self.index.get(&hash)?)?;
        if now >= slot.entry.until || !slot.entry.chain.matches(presented) {
            return None;
        }
        slot.used = true;
        Some(slot.entry.verdict.clone())
    }

    fn insert(&mut self, hash: u64, entry: Entry, now: u64) {
        let slot = Slot {
            hash,
            entry,
            used: false,
        };
        let position = match self.index.get(&hash) {
            Some(position) => *position,
            None if self.slots.len() < self.capacity => {
                self.index.insert(hash, self.slots.len());
                self.slots.push(slot);
                return;
            }
            None => self.victim(now),
        };
        if let Some(old) = self.slots.get_mut(position) {
            self.index.remove(&old.hash);
            self.index.insert(hash, position);
            *old = slot;
        }
    }

    /// The next slot that was not used since the hand last passed it, or has expired. The hand goes round at most
    /// once.
    fn victim(&mut self, now: u64) -> usize {
        for _ in 0..self.slots.len() {
            let position = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            match self.slots.get_mut(position) {
                Some(slot) if slot.used && now < slot.entry.until => slot.used = false,
                _ => return position,
            }
        }
        self.hand
    }
}
