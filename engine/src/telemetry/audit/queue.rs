//! The shards' side of the audit log: a bounded queue per shard to the audit thread, budgets for what
//! anybody can cause, and counts of the events that had no line.
//!
//! A shard must never wait here: an event that finds the queue full is counted, and the audit
//! thread writes the count.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use attest::AttestedPeer;
use attest::policy::PolicyEpoch;
use attest::values::Fingerprint;
use metrics::{Counter, Gauge};
use sha2::{Digest, Sha256};

use super::budget::{AddressBudget, TokenBucket};
use super::event::{Cause, ConnectionEvent, Event, Kind, PeerIdentity, Record, Traffic};
use crate::io::peer::Peer;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::metrics::Metrics;

/// Events of one shard that may wait for the audit thread, each of at most about 500 bytes.
const QUEUE_LEN: usize = 4096;

/// Lines about refusals with one reason, of clients that are not attested: on each shard, this many
/// at once, and one more for each [`UNATTESTED_REFILL`].
const UNATTESTED_BURST: u32 = 10;
const UNATTESTED_REFILL: Duration = Duration::from_secs(1);
/// The same, of attested clients.
const ATTESTED_BURST: u32 = 100;
const ATTESTED_REFILL: Duration = Duration::from_millis(100);

/// What the shards, the control thread and the audit thread share.
pub(super) struct Shared {
    pub(super) required: bool,
    /// Whether events cannot be written now.
    failing: AtomicBool,
    /// Why the audit thread cannot write: 0 if it can, else one more than the position in
    /// [`Cause::ALL`].
    cause: AtomicU8,
    /// Events without a line, in the order of [`Cause::ALL`].
    lost: [Loss; 3],
    /// The reader's side of every queue.
    pub(super) queues: Mutex<Vec<Queue>>,
    /// Every reason code, and its position.
    reasons: HashMap<&'static str, usize>,
    pub(super) reason_codes: Vec<&'static str>,
    pub(super) reopen: AtomicBool,
    pub(super) closing: AtomicBool,
    pub(super) thread: OnceLock<Thread>,
    pub(super) metrics: AuditMetrics,
}

/// Events without a line since the last gap line.
#[derive(Default)]
struct Loss {
    count: AtomicU64,
    /// When the first of them happened, in microseconds since 1970; 0 if there are none.
    since: AtomicU64,
}

/// The counters and the gauge of the audit log.
pub(crate) struct AuditMetrics {
    pub(super) lines: Counter,
    lost: [Counter; 3],
    pub(super) failing: Gauge,
}

impl AuditMetrics {
    /// Registers the series, with the value 0.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            lines: metrics.counter("teesql_audit_lines_total", &[]),
            lost: Cause::ALL.map(|cause| {
                metrics.counter("teesql_audit_lost_total", &[("cause", cause.code())])
            }),
            failing: metrics.gauge("teesql_audit_failing", &[]),
        }
    }
}

/// One queue, as the audit thread sees it.
pub(super) struct Queue {
    pub(super) events: Receiver<Record>,
    pub(super) unlisted: Arc<Unlisted>,
}

/// Events of one shard that exceeded their budget, and have no line each.
pub(super) struct Unlisted {
    /// By the position of their reason.
    refusals: Box<[AtomicU64]>,
    /// Of clients that are not attested.
    admissions: AtomicU64,
}

impl Unlisted {
    fn count_refusal(&self, reason: usize) {
        if let Some(count) = self.refusals.get(reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the count of a reason.
    pub(super) fn take_refusals(&self, reason: usize) -> u64 {
        self.refusals.get(reason).map_or(0, take)
    }

    /// Takes the count of the admissions.
    pub(super) fn take_admissions(&self) -> u64 {
        take(&self.admissions)
    }
}

fn take(count: &AtomicU64) -> u64 {
    // A load first: nearly all are 0, and a swap would take the cache line from the shard.
    match count.load(Ordering::Relaxed) {
        0 => 0,
        _ => count.swap(0, Ordering::Relaxed),
    }
}

impl Shared {
    pub(super) fn new(required: bool, metrics: &Metrics) -> Arc<Self> {
        let reason_codes: Vec<_> = metrics.reasons().collect();
        Arc::new(Self {
            required,
            failing: AtomicBool::new(false),
            cause: AtomicU8::new(0),
            lost: Default::default(),
            queues: Mutex::default(),
            reasons: reason_codes.iter().copied().zip(0..).collect(),
            reason_codes,
            reopen: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            thread: OnceLock::new(),
            metrics: AuditMetrics::new(metrics),
        })
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a queue for one thread.
    pub(super) fn register(self: &Arc<Self>) -> Producer {
        let (sender, events) = sync_channel(QUEUE_LEN);
        let counts = self.reason_codes.iter().map(|_| AtomicU64::new(0));
        let unlisted = Arc::new(Unlisted {
            refusals: counts.collect(),
            admissions: AtomicU64::new(0),
        });
        self.queues().push(Queue {
            events,
            unlisted: Arc::clone(&unlisted),
        });
        Producer {
            sender,
            unlisted,
            shared: Arc::clone(self),
        }
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Why events cannot be written; `None` if they can.
    pub(super) fn failure(&self) -> Option<Cause> {
        let cause = usize::from(self.cause.load(Ordering::Relaxed)).checked_sub(1);
        let known = cause.and_then(|position| Cause::ALL.get(position).copied());
        self.is_failing().then(|| known.unwrap_or(Cause::QueueFull))
    }

    /// Set by the audit thread: whether and why it cannot write.
    pub(super) fn set_failure(&self, cause: Option<Cause>) {
        let position = cause.and_then(|cause| Cause::ALL.iter().position(|known| *known == cause));
        let code = position.map_or(0, |position| position.saturating_add(1));
        self.cause
            .store(u8::try_from(code).unwrap_or(0), Ordering::Relaxed);
        self.failing.store(cause.is_some(), Ordering::Relaxed);
    }

    /// Counts events that get no line.
    pub(super) fn lose(&self, cause: Option<Cause>, events: u64) {
        let cause = cause.or_else(|| self.failure()).unwrap_or(Cause::QueueFull);
        for (known, (loss, counter)) in Cause::ALL
            .iter()
            .zip(self.lost.iter().zip(&self.metrics.lost))
        {
            if *known == cause {
                counter.increment(events);
                let _ = loss.since.compare_exchange(
                    0,
                    microseconds(SystemTime::now()),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                loss.count.fetch_add(events, Ordering::Release);
            }
        }
        self.failing.store(true, Ordering::Relaxed);
    }

    /// Takes the events without a line, by cause, and when the first one happened.
    pub(super) fn take_losses(&self) -> impl Iterator<Item = (Cause, u64, SystemTime)> {
        let losses = Cause::ALL.into_iter().zip(&self.lost);
        losses.filter_map(|(cause, loss)| {
            let count = loss.count.swap(0, Ordering::Acquire);
            if count == 0 {
                return None;
            }
            let since = match loss.since.swap(0, Ordering::Relaxed) {
                // A shard has counted this loss while the one before was taken.
                0 => SystemTime::now(),
                since => UNIX_EPOCH + Duration::from_micros(since),
            };
            Some((cause, count, since))
        })
    }
}

fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// The writer's side of one queue.
pub(super) struct Producer {
    sender: SyncSender<Record>,
    unlisted: Arc<Unlisted>,
    shared: Arc<Shared>,
}

impl Producer {
    /// Queues an event, or counts it as lost.
    pub(super) fn push(&self, event: Event) {
        if !self.try_push(event) {
            self.shared.lose(None, 1);
            // The audit thread may have emptied the queue meanwhile, and sleep: it has to see the count.
            self.shared.wake();
        }
    }

    /// Returns whether there was room.
    fn try_push(&self, event: Event) -> bool {
        let pushed = self.sender.try_send(Record::new(event)).is_ok();
        self.shared.wake();
        pushed
    }
}

/// The audit log of one shard.
pub(crate) struct ShardAudit {
    producer: Producer,
    unattested: RefCell<Vec<TokenBucket>>,
    attested: RefCell<Vec<TokenBucket>>,
    admissions: RefCell<AddressBudget>,
}

impl ShardAudit {
    pub(super) fn new(producer: Producer) -> Self {
        let buckets = |burst| {
            let reasons = producer.shared.reason_codes.iter();
            RefCell::new(reasons.map(|_| TokenBucket::new(burst)).collect())
        };
        Self {
            unattested: buckets(UNATTESTED_BURST),
            attested: buckets(ATTESTED_BURST),
            admissions: RefCell::new(AddressBudget::new()),
            producer,
        }
    }

    /// Whether a new session may begin: always, unless `audit_required` is set and nothing can be
    /// written now.
    pub(crate) fn accepts_sessions(&self) -> bool {
        !(self.producer.shared.required && self.producer.shared.is_failing())
    }

    /// The gate has let a client in. Without attestation anybody is let in, so that such lines have a budget: beyond it
    /// the admission is counted, and the audit thread writes the count.
    pub(crate) fn admitted(&self, info: &mut ConnectionInfo, peer: Option<&AttestedPeer>) {
        if let Some(audit) = &mut info.audit {
            audit.admitted = true;
        }
        if peer.is_some() {
            return self.push(Kind::Admission, info, peer, None, |_| {});
        }
        let address = info.proxied_client.or(info.peer.address());
        let address = address.map(|address| address.ip());
        let granted = self.admissions.borrow_mut().take(address, Instant::now());
        let event = || connection_event(Kind::Admission, info, None, None, |_| {});
        if !granted || !self.producer.try_push(Event::Connection(Box::new(event()))) {
            let admissions = &self.producer.unlisted.admissions;
            admissions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A client has become a session.
    pub(crate) fn role_granted(&self, info: &ConnectionInfo, peer: Option<&AttestedPeer>) {
        self.push(Kind::RoleGrant, info, peer, None, |_| {});
    }

    /// A member has opened a link to a service.
    pub(crate) fn link_granted(&self, info: &ConnectionInfo, peer: Option<&AttestedPeer>) {
        self.push(Kind::LinkGrant, info, peer, None, |_| {});
    }

    /// A connection has ended. `policy` is the one that refused it.
    pub(crate) fn ended(
        &self,
        info: &ConnectionInfo,
        peer: Option<&AttestedPeer>,
        policy: Option<PolicyEpoch>,
        (received, sent): (u64, u64),
        close_reason: &CloseReason,
    ) {
        let reason = close_reason.code();
        if info.is_session {
            if matches!(close_reason, CloseReason::Revoked(_)) {
                self.push(Kind::Revocation, info, peer, policy, |event| {
                    event.reason = Some(reason);
                });
            }
            let duration = info.accepted.elapsed();
            self.push(Kind::SessionEnd, info, peer, None, |event| {
                event.reason = Some(reason);
                event.traffic = Some(Traffic {
                    received,
                    sent,
                    duration,
                });
            });
            return;
        }
        let admitted = info.audit.as_ref().is_some_and(|audit| audit.admitted);
        let kind = match close_reason {
            CloseReason::Cancelled => Kind::Cancel,
            // A client that leaves before the verdict, such as a health check, is not refused.
            CloseReason::ClientGone | CloseReason::ClientIo(_) if !admitted => return,
            _ => Kind::Refusal,
        };
        let buckets = if admitted && peer.is_some() {
            (&self.attested, ATTESTED_BURST, ATTESTED_REFILL)
        } else {
            (&self.unattested, UNATTESTED_BURST, UNATTESTED_REFILL)
        };
        let policy = policy.filter(|_| kind == Kind::Refusal);
        self.limited(reason, buckets, || {
            connection_event(kind, info, peer, policy, |event| {
                event.reason = (kind == Kind::Refusal).then_some(reason);
            })
        });
    }

    /// A connection was closed at once, far above the connection limit.
    pub(crate) fn dropped_over_limit(&self, connection: u64, peer: Peer) {
        let reason = CloseReason::TooManyUnattested.code();
        let buckets = (&self.unattested, UNATTESTED_BURST, UNATTESTED_REFILL);
        self.limited(reason, buckets, || {
            let info = ConnectionInfo::new(connection, peer);
            connection_event(Kind::Refusal, &info, None, None, |event| {
                event.reason = Some(reason);
            })
        });
    }

    /// Queues an event if the bucket of its reason has a token, and counts it otherwise: the audit
    /// thread then writes one line with the count.
    fn limited(
        &self,
        reason: &'static str,
        (buckets, burst, refill): (&RefCell<Vec<TokenBucket>>, u32, Duration),
        event: impl FnOnce() -> ConnectionEvent,
    ) {
        let Some(position) = self.producer.shared.reasons.get(reason).copied() else {
            return self.producer.push(Event::Connection(Box::new(event())));
        };
        let mut buckets = buckets.borrow_mut();
        let bucket = buckets.get_mut(position);
        let granted = bucket.is_none_or(|bucket| bucket.take(Instant::now(), burst, refill));
        let queued = granted && self.producer.try_push(Event::Connection(Box::new(event())));
        if !queued {
            self.producer.unlisted.count_refusal(position);
        }
    }

    fn push(
        &self,
        kind: Kind,
        info: &ConnectionInfo,
        peer: Option<&AttestedPeer>,
        policy: Option<PolicyEpoch>,
        more: impl FnOnce(&mut ConnectionEvent),
    ) {
        let event = connection_event(kind, info, peer, policy, more);
        self.producer.push(Event::Connection(Box::new(event)));
    }
}

fn connection_event(
    kind: Kind,
    info: &ConnectionInfo,
    peer: Option<&AttestedPeer>,
    policy: Option<PolicyEpoch>,
    more: impl FnOnce(&mut ConnectionEvent),
) -> ConnectionEvent {
    let audit = info.audit.as_deref();
    let mut event = ConnectionEvent {
        kind,
        connection: info.number,
        address: info.peer,
        client: info.proxied_client,
        peer: peer.map(PeerIdentity::of),
        certificate: audit.and_then(|audit| audit.certificate),
        policy: policy.or_else(|| peer.map(AttestedPeer::policy_epoch)),
        reason: None,
        role: info.role,
        database: audit.and_then(|audit| audit.database.clone()),
        traffic: None,
        is_link: info.link.is_some(),
        service: info.link.as_ref().and_then(|link| link.service),
    };
    more(&mut event);
    event
}

/// The fingerprint of a client's leaf certificate.
pub(crate) fn fingerprint(leaf: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(leaf).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_have_a_count_a_cause_and_a_beginning() {
        let shared = Shared::new(true, &Metrics::new().unwrap());
        let audit = ShardAudit::new(shared.register());
        assert!(audit.accepts_sessions());
        shared.set_failure(Some(Cause::NoSpace));
        assert!(!audit.accepts_sessions());
        let before = SystemTime::now() - Duration::from_millis(1);
        for _ in 0..QUEUE_LEN + 7 {
            audit.producer.push(Event::Reopened);
        }
        let losses: Vec<_> = shared.take_losses().collect();
        let [(Cause::NoSpace, 7, since)] = losses[..] else {
            panic!("{:?}", losses.len());
        };
        assert!(since >= before && since <= SystemTime::now());
        assert_eq!(shared.take_losses().count(), 0);
        shared.set_failure(None);
        assert!(audit.accepts_sessions());
    }

    /// A flood of one kind of refusal neither fills the queue nor takes the lines of another kind.
    #[test]
    fn refusals_beyond_the_budget_are_counted_by_reason() {
        let shared = Shared::new(false, &Metrics::new().unwrap());
        let audit = ShardAudit::new(shared.register());
        let refuse = |reason: CloseReason| {
            let mut info = ConnectionInfo::new(0, Peer::Local);
            info.audit = Some(Box::default());
            audit.ended(&info, None, None, (0, 0), &reason);
        };
        let flood = 10_000;
        for _ in 0..flood {
            refuse(CloseReason::LoginTimeout);
        }
        refuse(CloseReason::AuthenticationFailed);
        refuse(CloseReason::ClientGone);
        let queues = shared.queues();
        let queued: Vec<_> = queues[0].events.try_iter().collect();
        let reasons: Vec<_> = queued
            .iter()
            .map(|record| match &record.event {
                Event::Connection(event) => event.reason.unwrap(),
                _ => panic!("{}", record.name()),
            })
            .collect();
        let timeouts = reasons
            .iter()
            .filter(|code| **code == "login_timeout")
            .count();
        assert!(
            timeouts >= UNATTESTED_BURST as usize && timeouts < 100,
            "{timeouts}"
        );
        assert_eq!(reasons.last(), Some(&"authentication_failed"));
        assert_eq!(reasons.len(), timeouts + 1);
        let position = shared.reasons["login_timeout"];
        assert_eq!(
            queues[0].unlisted.take_refusals(position),
            flood - timeouts as u64
        );
        assert_eq!(queues[0].unlisted.take_refusals(position), 0);
        assert_eq!(shared.take_losses().count(), 0);
    }

    /// Without attestation anybody is admitted: a flood from one address must not fill the disk, nor take the lines of
    /// another address.
    #[test]
    fn admissions_without_evidence_have_a_budget() {
        let shared = Shared::new(false, &Metrics::new().unwrap());
        let audit = ShardAudit::new(shared.register());
        let admit = |last: u8| {
            let address = ([192, 0, 2, last], 50_000).into();
            let mut info = ConnectionInfo::new(0, Peer::Tcp(address));
            info.audit = Some(Box::default());
            audit.admitted(&mut info, None);
            assert!(info.audit.is_some_and(|audit| audit.admitted));
        };
        let flood = 2 * QUEUE_LEN as u64;
        for _ in 0..flood {
            admit(1);
        }
        admit(2);
        let queues = shared.queues();
        let queued: Vec<_> = queues[0].events.try_iter().collect();
        let of = |last: u8| {
            let of_address = queued.iter().filter(|record| match &record.event {
                Event::Connection(event) => {
                    event.address.to_string() == format!("192.0.2.{last}:50000")
                }
                _ => panic!("{}", record.name()),
            });
            of_address.count() as u64
        };
        assert!((10..100).contains(&of(1)), "{}", of(1));
        assert_eq!(of(2), 1);
        assert_eq!(queues[0].unlisted.take_admissions(), flood - of(1));
        assert_eq!(queues[0].unlisted.take_admissions(), 0);
        assert_eq!(shared.take_losses().count(), 0);
    }
}
