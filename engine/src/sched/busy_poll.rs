//! Busy polling: a shard that has just moved bytes looks for more for a while before
//! it sleeps, since waking a core costs more than a short query does.
//!
//! A task keeps the runtime's loop turning, and every turn asks the kernel for
//! completions. It takes two tasks that wake each other: monoio 0.2.4 puts one that
//! wakes itself in front of all others.

mod predictor;

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

use predictor::{Habit, SOON};
pub(crate) use predictor::{Moved, Way};

/// The longest time without a look at the timers. monoio 0.2.4 looks at them only when no
/// task is ready, and deadlines must hold on a shard that always has one.
pub(crate) const WITHOUT_TIMERS: Duration = Duration::from_millis(10);
/// monoio's timers run out up to so much later.
const TIMER_STEP: Duration = Duration::from_millis(1);
/// A turn of the loop that took so long was interrupted: others want this core.
const INTERRUPTED: Duration = Duration::from_millis(1);

/// When a shard looks for more bytes before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// Never.
    Off,
    /// Where the last exchanges say that more comes soon, on a machine that has more
    /// than one core.
    Auto,
    /// For so long after all bytes.
    Always(Duration),
}

/// A shard's.
pub(crate) struct BusyPoll {
    polling: Polling,
    habit: RefCell<Habit>,
    /// How long to look.
    until: Cell<Option<Instant>>,
    asleep: Cell<bool>,
    looks: RefCell<Option<Waker>>,
    echoes: RefCell<Option<Waker>>,
}

impl BusyPoll {
    pub(crate) fn new(polling: Polling) -> Rc<Self> {
        Self::as_told(match polling {
            Polling::Auto if machine_has_one_core() => Polling::Off,
            polling => polling,
        })
    }

    fn as_told(polling: Polling) -> Rc<Self> {
        Rc::new(Self {
            polling,
            habit: RefCell::default(),
            until: Cell::new(None),
            asleep: Cell::new(false),
            looks: RefCell::default(),
            echoes: RefCell::default(),
        })
    }

    /// Bytes have come, and more may follow at once.
    #[inline]
    pub(crate) fn saw_traffic(&self, moved: Moved) {
        if self.polling != Polling::Off {
            self.consider(moved, Instant::now());
        }
    }

    fn consider(&self, moved: Moved, now: Instant) {
        let time = match self.polling {
            Polling::Off => None,
            Polling::Auto => self.habit.borrow_mut().saw(moved, now).then_some(SOON),
            Polling::Always(time) => Some(time),
        };
        self.until.set(time.map(|time| now + time));
        if time.is_some() && self.asleep.replace(false) {
            wake(&self.looks);
        }
    }

    /// Starts the two tasks, on the shard's runtime, where that is wanted.
    pub(crate) fn start(self: &Rc<Self>) {
        if self.polling == Polling::Off {
            return;
        }
        let (looker, echo) = (Rc::clone(self), Rc::clone(self));
        drop(monoio::spawn(async move { looker.look().await }));
        drop(monoio::spawn(async move {
            poll_fn(|cx| {
                keep(&echo.echoes, cx);
                wake(&echo.looks);
                Poll::<()>::Pending
            })
            .await;
        }));
    }

    async fn look(&self) {
        loop {
            self.something_to_wait_for().await;
            self.stay_awake().await;
        }
    }

    async fn something_to_wait_for(&self) {
        poll_fn(|cx| {
            keep(&self.looks, cx);
            if self.until.get().is_some() {
                return Poll::Ready(());
            }
            self.asleep.set(true);
            Poll::Pending
        })
        .await;
    }

    /// Until there has been nothing for long enough, or the timers want to be looked at.
    async fn stay_awake(&self) {
        let begun = Instant::now();
        let mut turned = begun;
        let mut timer = None;
        poll_fn(|cx| {
            let now = Instant::now();
            if self.polling == Polling::Auto && now.saturating_duration_since(turned) >= INTERRUPTED
            {
                self.habit.borrow_mut().interrupted(now);
                self.until.set(None);
            }
            turned = now;
            if self.until.get().is_none_or(|until| now >= until) {
                self.until.set(None);
                return Poll::Ready(());
            }
            let awake = now - begun;
            if awake >= WITHOUT_TIMERS / 2 {
                // Set so early, it has run out by the time that it is waited for: the
                // runtime looks at its timers and does not sleep.
                let sleep = || Box::pin(monoio::time::sleep(WITHOUT_TIMERS / 2 - TIMER_STEP));
                if timer.get_or_insert_with(sleep).as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                if awake >= WITHOUT_TIMERS {
                    // A wait for it would be no interruption.
                    turned = now + TIMER_STEP;
                    return Poll::Pending;
                }
            }
            wake(&self.echoes);
            Poll::Pending
        })
        .await;
    }
}

/// Of the machine's, not of those that this thread is tied to: with one, whoever is to
/// answer waits for the poller.
fn machine_has_one_core() -> bool {
    matches!(sysconf(SysconfVar::_NPROCESSORS_ONLN), Ok(Some(..=1)))
}

fn keep(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut place = place.borrow_mut();
    if place.is_none() {
        *place = Some(cx.waker().clone());
    }
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = place.borrow().as_ref() {
        waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::thread::JoinHandle;

    use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};
    use monoio::net::UnixStream;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    const QUESTION: Moved = Moved {
        session: 1,
        way: Way::ToServer,
        bytes: 50,
    };

    const ALWAYS: Polling = Polling::Always(Duration::from_millis(20));

    fn on_both(polling: Polling, test: impl AsyncFn(Rc<BusyPoll>)) {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let ran = block_on(driver, async {
                let busy = BusyPoll::as_told(polling);
                busy.start();
                test(busy).await;
            });
            if let Err(error) = ran {
                println!("skipped {driver}: {error}");
            }
        }
    }

    async fn falls_asleep(busy: &BusyPoll) {
        let mut tries = 0;
        while !busy.asleep.get() {
            tries += 1;
            assert!(tries < 10_000, "it never sleeps");
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends one byte to and fro for as long as it likes.
    fn echo(mut socket: StdUnixStream) {
        let give_up = Instant::now() + Duration::from_secs(5);
        let mut byte = [0];
        while Instant::now() < give_up && socket.read_exact(&mut byte).is_ok() {
            if socket.write_all(&byte).is_err() {
                return;
            }
        }
    }

    /// A session that asks again as soon as it is answered.
    fn session(busy: Rc<BusyPoll>) -> JoinHandle<()> {
        let (far, near) = StdUnixStream::pair().unwrap();
        near.set_nonblocking(monoio::utils::is_legacy()).unwrap();
        let mut near = UnixStream::from_std(near).unwrap();
        drop(monoio::spawn(async move {
            loop {
                busy.saw_traffic(QUESTION);
                let (sent, byte) = near.write_all(vec![1]).await;
                let (read, _) = near.read(byte).await;
                if sent.is_err() || !matches!(read, Ok(1)) {
                    break;
                }
            }
        }));
        std::thread::spawn(move || echo(far))
    }

    #[test]
    fn timers_run_out_although_traffic_never_ends() {
        for sessions in [1, 16] {
            on_both(ALWAYS, async |busy| {
                let peers: Vec<_> = (0..sessions).map(|_| session(Rc::clone(&busy))).collect();
                for _ in 0..3 {
                    monoio::time::sleep(Duration::from_millis(20)).await;
                }
                let all_there = peers.iter().all(|peer| !peer.is_finished());
                assert!(all_there, "the timer waited for the traffic's end");
            });
        }
    }

    #[test]
    fn it_sleeps_when_the_traffic_ends_and_wakes_with_it() {
        on_both(ALWAYS, async |busy| {
            for _ in 0..3 {
                busy.saw_traffic(QUESTION);
                assert!(!busy.asleep.get());
                falls_asleep(&busy).await;
            }
        });
    }

    #[test]
    fn auto_looks_where_more_comes_soon_and_then_sleeps() {
        on_both(Polling::Auto, async |busy| {
            for (apart, looks) in [(SOON * 2, false), (SOON / 2, true)] {
                falls_asleep(&busy).await;
                let now = Instant::now();
                (0..30).for_each(|n| busy.consider(QUESTION, now + apart * n));
                assert_eq!(busy.until.get().is_some(), looks);
                assert_eq!(busy.asleep.get(), !looks);
            }
            falls_asleep(&busy).await;
        });
    }

    #[test]
    fn off_it_does_nothing() {
        on_both(Polling::Off, async |off| {
            off.saw_traffic(QUESTION);
            assert!(off.looks.borrow().is_none());
        });
    }
}
