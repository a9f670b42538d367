//! Verdicts that were already reached.
//!
//! [`VerdictCache`] is for one thread: no lock, nothing shared, no clock in it. Where verifications run one
//! after the other, as on the verify thread, it makes a crowd with one certificate cost one of them.
//!
//! **What a verdict is about.** The same chain, byte for byte, under the same policy and collateral.
//! That is what SHA-256 of the certificate and the policy epoch would mean, without its price: SHA-256
//! of a dstack chain takes some 5 µs, and a hit may take one. So the slot is found by SipHash with a
//! key of this process, over the parts of the leaf that differ between certificates (serial, names,
//! dates and key at its start, the issuer's signature at its end, its length), and then every byte is
//! compared. Two certificates that fall on one slot cost each other a miss, never a wrong verdict; and
//! to fall on a victim's slot on purpose takes its public key at the start of the leaf, and so, to get
//! through the handshake, its private key.
//!
//! **Who can fill it.** A denial costs a peer a handshake with any quote, an admission takes a genuine
//! one. Denials have slots of their own, so that they cannot push admissions out.

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

/// Longest time that a denial is remembered, in seconds: long enough that a peer that tries again at
/// once costs nothing, short enough that a mended one does not notice.
pub const DENIAL_TTL: u64 = 5;

/// How many slots of denials there are, as a part of those of admissions.
const ADMISSIONS_PER_DENIAL: usize = 8;

/// Bytes of the leaf's start that choose the slot: in a dstack leaf the key ends before byte 350.
const HASHED_HEAD: usize = 512;
/// Bytes of the leaf's end that choose the slot: an ECDSA P-256 signature has up to 72.
const HASHED_TAIL: usize = 72;

/// What verdicts depend on beside the certificate. A change empties the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// The policy.
    pub policy: PolicyEpoch,
    /// Counts the changes of the collateral that is held.
    pub collateral: u64,
}

/// The verdicts of one shard.
pub struct VerdictCache<S = RandomState> {
    epoch: Epoch,
    ttl: u64,
    admissions: ClockCache,
    denials: ClockCache,
    hasher: S,
}

impl VerdictCache {
    /// An empty cache with room for `capacity` admissions, which are remembered for `ttl` seconds at
    /// most. The key of the hash is std's, as in every `HashMap`.
    #[must_use]
    pub fn new(capacity: usize, ttl: u64, epoch: Epoch) -> Self {
        Self::with_hasher(capacity, ttl, epoch, RandomState::new())
    }
}

impl<S: BuildHasher> VerdictCache<S> {
    /// The same with a hasher of the caller's.
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

    /// The verdict about the presented chain, if there is one that still holds at `now` in `epoch`. In
    /// another epoch than before the cache empties itself first.
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

    /// Remembers a verdict that was reached in `epoch`. It is forgotten at once if that is not the
    /// cache's epoch any more, or if it is this side's fault.
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

    /// Moves to `epoch`; if it is another one, everything is forgotten.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.admissions.clear();
            self.denials.clear();
        }
    }

    /// How many verdicts are held: admissions and denials.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.admissions.index.len(), self.denials.index.len())
    }

    /// Whether none is held.
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

/// A bounded map that forgets by the clock algorithm: an entry that was used since the hand last came
/// by gets a second chance.
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
    /// The first second at which it no longer holds.
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

    /// The next slot that was not used since the hand came by, or no longer holds. At most one turn.
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
