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
//! **Memory.** A refused peer chooses the size of its certificates and pays nothing for them, so of its chain only
//! a SHA-256 is kept. An admission keeps its chain, within a budget of bytes for all of them. Expired entries
//! are removed by [`VerdictCache::sweep`], which the owner calls from time to time.
//!
//! **Eviction by peers.** Any quote suffices to add a denial; an admission needs a genuine one. Denials have
//! separate slots, so they cannot evict admissions.
//!
//! What it must never do: return a verdict for other bytes, or for another policy or collateral; keep the
//! certificates of a refused peer.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::chain::{Chain, fingerprint};
use crate::denial::{Denial, Fault};
use crate::policy::PolicyEpoch;
use crate::values::Fingerprint;
use crate::verify::AttestedPeer;

/// The outcome of a verification.
pub type Verdict = Result<Arc<AttestedPeer>, Denial>;

/// Maximum time that a denial is cached, in seconds: long enough that immediate retries cost nothing, short
/// enough that a peer whose fault was repaired is admitted soon.
pub const DENIAL_TTL: u64 = 5;

/// Slots for admissions per slot for denials.
const ADMISSIONS_PER_DENIAL: usize = 8;

/// What an admission occupies in addition to its chain and its texts, in bytes: the slot, the index, the
/// measurements and identity of the peer, and the allocator's headers.
const ADMISSION_OVERHEAD: usize = 1 << 10;

/// Slots of each kind that one [`VerdictCache::sweep`] looks at. Freeing this many chains takes less than 50 µs.
const SWEEP_SLOTS: usize = 256;

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

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Maximum number of admissions. There is a slot for a denial for every eighth.
    pub admissions: usize,
    /// Maximum size of all admissions, in bytes: certificates, texts, and 1 KiB for each. A larger one is not
    /// cached.
    pub bytes: usize,
}

impl Default for Capacity {
    /// 4,096 admissions and 16 MiB: about 1,600 peers with dstack's certificates.
    fn default() -> Self {
        Self {
            admissions: 4096,
            bytes: 16 << 20,
        }
    }
}

/// The cached verdicts of one thread.
pub struct VerdictCache<S = RandomState> {
    epoch: Epoch,
    ttl: u64,
    admissions: ClockCache<Chain, Arc<AttestedPeer>>,
    denials: ClockCache<ChainDigest, Denial>,
    hasher: S,
}

impl VerdictCache {
    /// An empty cache, of verdicts that are valid for at most `ttl` seconds. The hash has a random key, like that
    /// of a `HashMap`.
    #[must_use]
    pub fn new(capacity: Capacity, ttl: u64, epoch: Epoch) -> Self {
        Self::with_hasher(capacity, ttl, epoch, RandomState::new())
    }
}

impl<S: BuildHasher> VerdictCache<S> {
    /// As [`VerdictCache::new`], with another hasher.
    #[must_use]
    pub fn with_hasher(capacity: Capacity, ttl: u64, epoch: Epoch, hasher: S) -> Self {
        let Capacity { admissions, bytes } = capacity;
        let denials = admissions.div_ceil(ADMISSIONS_PER_DENIAL);
        Self {
            epoch,
            ttl,
            admissions: ClockCache::new(admissions, bytes),
            denials: ClockCache::new(denials, usize::MAX),
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
        if let Some(peer) = self.admissions.get(hash, presented, now) {
            return Some(Ok(Arc::clone(peer)));
        }
        self.denials
            .get(hash, presented, now)
            .map(|denial| Err(denial.clone()))
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
        let hash = hash_leaf(&self.hasher, leaf);
        match verdict {
            Ok(peer) => {
                let end = peer.valid_until().saturating_add(1);
                // The peer's own copy of the chain, if that is what was presented: one copy instead of two.
                let chain = if peer.chain() == chain {
                    peer.chain()
                } else {
                    chain
                };
                let entry = Entry {
                    bytes: admission_bytes(chain, peer),
                    key: chain.clone(),
                    value: Arc::clone(peer),
                    until: end.min(now.saturating_add(self.ttl)),
                };
                self.admissions.insert(hash, entry, now);
            }
            Err(denial) if denial.fault() == Fault::Ours => {}
            Err(denial) => {
                let entry = Entry {
                    bytes: 0,
                    key: ChainDigest::of_chain(chain),
                    value: denial.clone(),
                    until: now.saturating_add(DENIAL_TTL.min(self.ttl)),
                };
                self.denials.insert(hash, entry, now);
            }
        }
    }

    /// Removes expired verdicts from the next `SWEEP_SLOTS` slots of each kind. Returns whether all slots have
    /// been looked at since the last time that it returned true.
    pub fn sweep(&mut self, now: u64) -> bool {
        let admissions = self.admissions.sweep(now);
        let denials = self.denials.sweep(now);
        admissions && denials
    }

    /// Size of the cached admissions, in bytes, as [`Capacity::bytes`] counts them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.admissions.bytes
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

/// What an admission counts against the budget.
fn admission_bytes(chain: &Chain, peer: &AttestedPeer) -> usize {
    let certificates = chain.certificates().iter().map(|der| der.len());
    let advisories = peer.advisories().iter().map(String::len);
    let key_provider = peer.key_provider().map_or(0, str::len);
    certificates
        .chain(advisories)
        .sum::<usize>()
        .saturating_add(key_provider)
        .saturating_add(ADMISSION_OVERHEAD)
}

/// SHA-256 over the SHA-256 of each certificate of a chain.
#[derive(PartialEq, Eq)]
struct ChainDigest([u8; 32]);

impl ChainDigest {
    /// Of a chain whose leaf has been hashed already.
    fn of_chain(chain: &Chain) -> Self {
        let issuers = chain.certificates().get(1..).unwrap_or_default();
        let issuers = issuers.iter().map(|der| fingerprint(der));
        Self::of(std::iter::once(chain.fingerprint()).chain(issuers))
    }

    fn of(fingerprints: impl Iterator<Item = Fingerprint>) -> Self {
        let digest = fingerprints.fold(Sha256::new(), |hash, Fingerprint(next)| {
            hash.chain_update(next)
        });
        Self(digest.finalize().into())
    }
}

/// What identifies a chain in the cache.
trait ChainKey {
    fn matches(&self, presented: &[impl AsRef<[u8]>]) -> bool;
}

impl ChainKey for Chain {
    fn matches(&self, presented: &[impl AsRef<[u8]>]) -> bool {
        Chain::matches(self, presented)
    }
}

impl ChainKey for ChainDigest {
    fn matches(&self, presented: &[impl AsRef<[u8]>]) -> bool {
        *self == Self::of(presented.iter().map(|der| fingerprint(der.as_ref())))
    }
}

/// A map with CLOCK replacement, bounded in entries and bytes: an entry that was used since the hand last passed
/// it gets a second chance.
struct ClockCache<K, V> {
    capacity: usize,
    max_bytes: usize,
    bytes: usize,
    index: HashMap<u64, usize>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    /// The next slot that a sweep looks at.
    swept: usize,
}

struct Slot<K, V> {
    hash: u64,
    entry: Entry<K, V>,
    used: bool,
}

struct Entry<K, V> {
    key: K,
    value: V,
    bytes: usize,
    /// The first second at which the verdict is invalid.
    until: u64,
}

impl<K: ChainKey, V> ClockCache<K, V> {
    fn new(capacity: usize, max_bytes: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            max_bytes,
            bytes: 0,
            index: HashMap::new(),
            slots: Vec::new(),
            hand: 0,
            swept: 0,
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.capacity, self.max_bytes);
    }

    fn get(&mut self, hash: u64, presented: &[impl AsRef<[u8]>], now: u64) -> Option<&V> {
        let slot = self.slots.get_mut(*self.index.get(&hash)?)?;
        if now >= slot.entry.until || !slot.entry.key.matches(presented) {
            return None;
        }
        slot.used = true;
        Some(&slot.entry.value)
    }

    fn insert(&mut self, hash: u64, entry: Entry<K, V>, now: u64) {
        if entry.bytes > self.max_bytes {
            return;
        }
        if let Some(position) = self.index.get(&hash) {
            self.remove(*position);
        }
        while self.slots.len() >= self.capacity
            || self.bytes.saturating_add(entry.bytes) > self.max_bytes
        {
            let victim = self.victim(now);
            self.remove(victim);
        }
        self.bytes = self.bytes.saturating_add(entry.bytes);
        self.index.insert(hash, self.slots.len());
        self.slots.push(Slot {
            hash,
            entry,
            used: false,
        });
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

    /// Removes the slot at `position`. The last one takes its place.
    fn remove(&mut self, position: usize) {
        if position >= self.slots.len() {
            return;
        }
        let removed = self.slots.swap_remove(position);
        self.index.remove(&removed.hash);
        self.bytes = self.bytes.saturating_sub(removed.entry.bytes);
        if let Some(moved) = self.slots.get(position) {
            self.index.insert(moved.hash, position);
        }
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
    }

    /// Removes expired entries from the next [`SWEEP_SLOTS`] slots. Returns whether it has reached the end.
    fn sweep(&mut self, now: u64) -> bool {
        for _ in 0..SWEEP_SLOTS {
            match self.slots.get(self.swept) {
                None => {
                    self.swept = 0;
                    self.shrink();
                    return true;
                }
                Some(slot) if now >= slot.entry.until => self.remove(self.swept),
                Some(_) => self.swept += 1,
            }
        }
        false
    }

    /// Frees slots that have not been used for a whole sweep.
    fn shrink(&mut self) {
        if self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
            self.index.shrink_to(self.slots.len() * 2);
        }
    }
}
