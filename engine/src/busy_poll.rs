//! Busy polling: a shard that has just moved bytes looks for more for a while before
//! it sleeps, since waking a core costs more than a short query does.
//!
//! Off, it is a flag that nobody reads. On, a task keeps the runtime's loop turning,
//! and every turn asks the kernel for completions. It takes two tasks that wake each
//! other: monoio 0.2.4 puts one that wakes itself in front of all others.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The longest time without a look at the timers. monoio looks at them only before
/// the shard sleeps, and deadlines must hold on one that is never without traffic.
const WITHOUT_TIMERS: Duration = Duration::from_millis(10);

/// A shard's.
pub(crate) struct BusyPoll {
    /// How long after the last bytes.
    time: Option<Duration>,
    traffic: Cell<bool>,
    asleep: Cell<bool>,
    looks: RefCell<Option<Waker>>,
    echoes: RefCell<Option<Waker>>,
}

impl BusyPoll {
    pub(crate) fn new(time: Option<Duration>) -> Rc<Self> {
        Rc::new(Self {
            time,
            traffic: Cell::new(false),
            asleep: Cell::new(false),
            looks: RefCell::default(),
            echoes: RefCell::default(),
        })
    }

    /// Bytes have come, and more may follow at once.
    #[inline]
    pub(crate) fn saw_traffic(&self) {
        self.traffic.set(true);
        if self.asleep.replace(false) {
            wake(&self.looks);
        }
    }

    /// Starts the two tasks, on the shard's runtime, where that is wanted.
    pub(crate) fn start(self: &Rc<Self>) {
        let Some(time) = self.time else { return };
        let (looker, echo) = (Rc::clone(self), Rc::clone(self));
        drop(monoio::spawn(async move { looker.look(time).await }));
        drop(monoio::spawn(async move {
            poll_fn(|cx| {
                keep(&echo.echoes, cx);
                wake(&echo.looks);
                Poll::<()>::Pending
            })
            .await;
        }));
    }

    async fn look(&self, time: Duration) {
        loop {
            self.traffic_comes().await;
            if self.stay_awake(time).await.is_err() {
                // Not over before the runtime has looked at its timers.
                monoio::time::sleep(Duration::ZERO).await;
            }
        }
    }

    async fn traffic_comes(&self) {
        poll_fn(|cx| {
            keep(&self.looks, cx);
            if self.traffic.replace(false) {
                return Poll::Ready(());
            }
            self.asleep.set(true);
            Poll::Pending
        })
        .await;
    }

    /// Until there has been no traffic for `time`.
    ///
    /// # Errors
    /// The traffic has not paused for [`WITHOUT_TIMERS`].
    async fn stay_awake(&self, time: Duration) -> Result<(), ()> {
        let begun = Instant::now();
        let mut last = begun;
        poll_fn(|_| {
            let now = Instant::now();
            if self.traffic.replace(false) {
                last = now;
            }
            if now - last >= time {
                return Poll::Ready(Ok(()));
            }
            if now - begun >= WITHOUT_TIMERS {
                return Poll::Ready(Err(()));
            }
            wake(&self.echoes);
            Poll::Pending
        })
        .await
    }
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
    use crate::driver::{Driver, block_on};

    fn on_both(test: impl AsyncFn(Rc<BusyPoll>)) {
        for driver in [Driver::Epoll, Driver::IoUring] {
            let ran = block_on(driver, async {
                let busy = BusyPoll::new(Some(Duration::from_millis(20)));
                busy.start();
                test(busy).await;
            });
            if let Err(error) = ran {
                println!("skipped {driver}: {error}");
            }
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
                busy.saw_traffic();
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
            on_both(async |busy| {
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
        on_both(async |busy| {
            for _ in 0..3 {
                busy.saw_traffic();
                assert!(!busy.asleep.get());
                let mut tries = 0;
                while !busy.asleep.get() {
                    tries += 1;
                    assert!(tries < 10_000, "it never sleeps");
                    monoio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }

    #[test]
    fn off_it_does_nothing() {
        on_both(async |_| {
            let off = BusyPoll::new(None);
            off.start();
            off.saw_traffic();
            assert!(off.looks.borrow().is_none());
        });
    }
}
