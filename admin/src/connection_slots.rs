//! A bounded set of connection slots with eviction: when all are taken, a new connection evicts the
//! oldest one that waits for its client.
//!
//! Refusing the newest connection instead would let a few slow clients (slowloris) block the
//! server. A connection whose response is being made is never evicted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::settings::Settings;

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionPhase {
    /// The client to send its request.
    ReadingRequest,
    /// The server to produce the response.
    Processing,
    /// The client to read the response.
    WritingResponse,
}

/// Why a connection is closed before it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictReason {
    /// A newer connection needs its slot.
    NewerConnection,
    /// A timeout has expired.
    Timeout,
}

/// Timeouts of one connection.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    write: Duration,
    lifetime: Duration,
}

/// The set of slots.
pub(crate) struct ConnectionSlots {
    max: usize,
    timeouts: Timeouts,
    occupied: Mutex<Occupied>,
}

#[derive(Default)]
struct Occupied {
    next_id: u64,
    /// Ordered by age: ids are assigned in ascending order.
    slots: BTreeMap<u64, Arc<Slot>>,
}

/// The slot of one connection.
pub(crate) struct Slot {
    phase: watch::Sender<ConnectionPhase>,
    evicted: Notify,
    timeouts: Timeouts,
}

/// Releases its slot when dropped.
pub(crate) struct SlotGuard {
    slots: Arc<ConnectionSlots>,
    id: u64,
    slot: Arc<Slot>,
}

impl ConnectionSlots {
    pub(crate) fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            max: settings.max_connections,
            timeouts: Timeouts {
                write: settings.write_timeout,
                lifetime: settings.connection_lifetime,
            },
            occupied: Mutex::default(),
        })
    }

    /// Acquires a slot, if necessary by evicting the oldest connection that waits for its client.
    ///
    /// Returns `None` when every connection waits for the server. The cap on waiters for a report
    /// and its timeout keep that rare and short.
    pub(crate) fn acquire(self: &Arc<Self>) -> Option<SlotGuard> {
        let mut occupied = self.occupied();
        if occupied.slots.len() >= self.max {
            occupied.evict_oldest()?;
        }
        let (id, slot) = (occupied.next_id, Arc::new(Slot::new(self.timeouts)));
        occupied.next_id = occupied.next_id.wrapping_add(1);
        occupied.slots.insert(id, Arc::clone(&slot));
        Some(SlotGuard {
            slots: Arc::clone(self),
            id,
            slot,
        })
    }

    fn occupied(&self) -> MutexGuard<'_, Occupied> {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Occupied {
    fn evict_oldest(&mut self) -> Option<()> {
        let mut by_age = self.slots.iter();
        let (&oldest, _) =
            by_age.find(|(_, slot)| *slot.phase.borrow() != ConnectionPhase::Processing)?;
        self.slots.remove(&oldest)?.evicted.notify_one();
        Some(())
    }
}

impl Slot {
    fn new(timeouts: Timeouts) -> Self {
        Self {
            phase: watch::Sender::new(ConnectionPhase::ReadingRequest),
            evicted: Notify::new(),
            timeouts,
        }
    }

    /// Records that the request is complete.
    pub(crate) fn request_received(&self) {
        self.phase.send_replace(ConnectionPhase::Processing);
    }

    /// Records that the response is complete and is being sent.
    pub(crate) fn response_ready(&self) {
        self.phase.send_replace(ConnectionPhase::WritingResponse);
    }

    /// Resolves when the connection must be closed: on eviction or at a timeout.
    pub(crate) async fn wait_for_eviction(&self) -> EvictReason {
        let write_timeout = async {
            let mut phase = self.phase.subscribe();
            if phase
                .wait_for(|phase| *phase == ConnectionPhase::WritingResponse)
                .await
                .is_ok()
            {
                sleep(self.timeouts.write).await;
            }
        };
        tokio::select! {
            () = self.evicted.notified() => EvictReason::NewerConnection,
            () = write_timeout => EvictReason::Timeout,
            () = sleep(self.timeouts.lifetime) => EvictReason::Timeout,
        }
    }
}

impl SlotGuard {
    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.slots.occupied().slots.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    fn slots(max_connections: usize) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(&Settings {
            max_connections,
            ..Settings::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn evicts_the_oldest_connection_that_waits_for_its_client() {
        let slots = slots(3);
        let held: Vec<_> = (0..3).map(|_| slots.acquire().unwrap()).collect();
        held[0].slot().request_received();
        let newcomer = slots.acquire().unwrap();
        assert_eq!(
            held[1].slot().wait_for_eviction().await,
            EvictReason::NewerConnection
        );
        held[2].slot().request_received();
        newcomer.slot().request_received();
        assert!(slots.acquire().is_none());
        newcomer.slot().response_ready();
        assert!(slots.acquire().is_some());
        assert_eq!(
            newcomer.slot().wait_for_eviction().await,
            EvictReason::NewerConnection
        );
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_guards_release_their_slots() {
        let slots = slots(1);
        for _ in 0..10 {
            slots.acquire().unwrap().slot().request_received();
        }
        assert!(slots.occupied().slots.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_connections_are_evicted_at_their_timeout() {
        let slots = slots(2);
        let (idle, slow_reader) = (slots.acquire().unwrap(), slots.acquire().unwrap());
        let start = Instant::now();
        slow_reader.slot().response_ready();
        assert_eq!(
            slow_reader.slot().wait_for_eviction().await,
            EvictReason::Timeout
        );
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        let reason = timeout(Duration::from_secs(100), idle.slot().wait_for_eviction());
        assert_eq!(reason.await, Ok(EvictReason::Timeout));
        assert_eq!(start.elapsed(), Duration::from_secs(70));
    }
}
