//! How many connections there are, and which one goes for one more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::settings::Settings;

/// Whose turn it is on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The client sends its request.
    Asking,
    /// The answer is being made.
    Answering,
    /// The client takes the answer.
    Taking,
}

/// Why a connection has to end before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// A newer one needs its place.
    Displaced,
    /// A deadline has passed.
    TooSlow,
}

/// Deadlines of one connection.
#[derive(Clone, Copy, Debug)]
struct Times {
    write: Duration,
    life: Duration,
}

/// All the seats.
pub(crate) struct Seats {
    most: usize,
    times: Times,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// By age.
    seats: BTreeMap<u64, Arc<Seat>>,
}

/// One connection's place.
pub(crate) struct Seat {
    turn: watch::Sender<Turn>,
    displaced: Notify,
    times: Times,
}

/// Gives the place up when it is dropped.
pub(crate) struct Guest {
    seats: Arc<Seats>,
    number: u64,
    seat: Arc<Seat>,
}

impl Seats {
    pub(crate) fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            most: settings.connections,
            times: Times {
                write: settings.write_timeout,
                life: settings.connection_life,
            },
            taken: Mutex::default(),
        })
    }

    /// A place, if need be that of the oldest connection that waits for its client. `None` when all
    /// wait for us: their number is bounded elsewhere, and their end is near.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Guest> {
        let mut taken = self.taken();
        if taken.seats.len() >= self.most {
            taken.displace()?;
        }
        let (number, seat) = (taken.next, Arc::new(Seat::new(self.times)));
        taken.next = taken.next.wrapping_add(1);
        taken.seats.insert(number, Arc::clone(&seat));
        Some(Guest {
            seats: Arc::clone(self),
            number,
            seat,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn displace(&mut self) -> Option<()> {
        let mut by_age = self.seats.iter();
        let (&oldest, _) = by_age.find(|(_, seat)| *seat.turn.borrow() != Turn::Answering)?;
        self.seats.remove(&oldest)?.displaced.notify_one();
        Some(())
    }
}

impl Seat {
    fn new(times: Times) -> Self {
        Self {
            turn: watch::Sender::new(Turn::Asking),
            displaced: Notify::new(),
            times,
        }
    }

    /// The request is complete.
    pub(crate) fn asked(&self) {
        self.turn.send_replace(Turn::Answering);
    }

    /// The answer is complete, and goes out.
    pub(crate) fn answered(&self) {
        self.turn.send_replace(Turn::Taking);
    }

    /// Returns when the connection has to end.
    pub(crate) async fn overdue(&self) -> Overdue {
        let reading = async {
            let mut turn = self.turn.subscribe();
            if turn.wait_for(|turn| *turn == Turn::Taking).await.is_ok() {
                sleep(self.times.write).await;
            }
        };
        tokio::select! {
            () = self.displaced.notified() => Overdue::Displaced,
            () = reading => Overdue::TooSlow,
            () = sleep(self.times.life) => Overdue::TooSlow,
        }
    }
}

impl Guest {
    pub(crate) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.seats.taken().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    fn seats(connections: usize) -> Arc<Seats> {
        Seats::new(&Settings {
            connections,
            ..Settings::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_waits_for_its_client_goes_first() {
        let seats = seats(3);
        let waits: Vec<_> = (0..3).map(|_| seats.take().unwrap()).collect();
        waits[0].seat().asked();
        let newcomer = seats.take().unwrap();
        assert_eq!(waits[1].seat().overdue().await, Overdue::Displaced);
        waits[2].seat().asked();
        newcomer.seat().asked();
        assert!(seats.take().is_none());
        newcomer.seat().answered();
        assert!(seats.take().is_some());
        assert_eq!(newcomer.seat().overdue().await, Overdue::Displaced);
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_given_back() {
        let seats = seats(1);
        for _ in 0..10 {
            seats.take().unwrap().seat().asked();
        }
        assert!(seats.taken().seats.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_too_long_is_told_to_go() {
        let seats = seats(2);
        let (idle, reading) = (seats.take().unwrap(), seats.take().unwrap());
        let start = Instant::now();
        reading.seat().answered();
        assert_eq!(reading.seat().overdue().await, Overdue::TooSlow);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        let overdue = timeout(Duration::from_secs(100), idle.seat().overdue());
        assert_eq!(overdue.await, Ok(Overdue::TooSlow));
        assert_eq!(start.elapsed(), Duration::from_secs(70));
    }
}
