//! Adaptive busy polling: a shard that has just moved bytes polls for more before it sleeps, where
//! measurement shows that this saves enough ([`predictor`]).
//!
//! A task that is always ready keeps the runtime's loop running, and each iteration asks the
//! kernel for completions without waiting. It must never keep the timers, or a thread that
//! wants the core, waiting for long (docs/adr/0011-adaptive-busy-polling.md).

mod predictor;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

use crate::sched::yield_now::{Yielded, yield_now};
use predictor::ArrivalPredictor;
pub(crate) use predictor::{Direction, Transfer};

/// An iteration of the loop that takes this long was preempted: another thread wants the core.
const PREEMPTED: Duration = Duration::from_millis(1);

/// The `busy_poll` setting: when a shard polls for more bytes before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyPollMode {
    /// Never.
    Off,
    /// While measurement shows that it saves enough, on a machine with more than one core.
    Auto,
    /// After every transfer, for this time.
    Always(Duration),
}

/// The poller of one shard.
pub(crate) struct BusyPoll {
    mode: BusyPollMode,
    predictor: RefCell<ArrivalPredictor>,
    /// When polling ends, while it is armed.
    poll_until: Cell<Option<Instant>>,
    /// The polling task, while it is not armed.
    idle: Cell<Option<Waker>>,
}

impl BusyPoll {
    pub(crate) fn new(mode: BusyPollMode) -> Rc<Self> {
        Self::with_mode(match mode {
            BusyPollMode::Auto if machine_has_one_core() => BusyPollMode::Off,
            mode => mode,
        })
    }

    fn with_mode(mode: BusyPollMode) -> Rc<Self> {
        Rc::new(Self {
            mode,
            predictor: RefCell::new(ArrivalPredictor::new()),
            poll_until: Cell::new(None),
            idle: Cell::new(None),
        })
    }

    /// Records a transfer, and arms the poller if polling for the next one is worth it.
    #[inline]
    pub(crate) fn observe(&self, transfer: Transfer) {
        if self.mode != BusyPollMode::Off {
            self.observe_at(transfer, Instant::now);
        }
    }

    fn observe_at(&self, transfer: Transfer, clock: impl FnOnce() -> Instant) {
        let until = match self.mode {
            BusyPollMode::Off => None,
            BusyPollMode::Auto => self.predictor.borrow_mut().observe(transfer, clock),
            BusyPollMode::Always(time) => Some(clock() + time),
        };
        self.poll_until.set(until);
        if until.is_some()
            && let Some(task) = self.idle.take()
        {
            task.wake();
        }
    }

    /// Starts the polling task on the shard's runtime, unless the mode is `Off`.
    pub(crate) fn start(self: &Rc<Self>) {
        if self.mode != BusyPollMode::Off {
            drop(monoio::spawn(Rc::clone(self).run()));
        }
    }

    async fn run(self: Rc<Self>) {
        loop {
            self.until_armed().await;
            self.poll().await;
        }
    }

    async fn until_armed(&self) {
        poll_fn(|cx| {
            if self.poll_until.get().is_some() {
                return Poll::Ready(());
            }
            self.idle.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Keeps the loop running until no bytes have arrived for long enough, or another thread
    /// wants the core.
    async fn poll(&self) {
        let mut now = Instant::now();
        while self.poll_until.get().is_some_and(|until| now < until) {
            let before = now;
            let yielded = yield_now().await;
            now = Instant::now();
            // While it waits for the timers, all other tasks may run: that may take longer.
            let preempted = yielded == Yielded::ToTasks && now - before >= PREEMPTED;
            if preempted && self.mode == BusyPollMode::Auto {
                self.predictor.borrow_mut().preempted(now);
                break;
            }
        }
        self.poll_until.set(None);
    }
}

/// Counts the machine's cores and not those that this thread is pinned to: with a single core,
/// the process that sends the next bytes waits for the poller.
fn machine_has_one_core() -> bool {
    matches!(sysconf(SysconfVar::_NPROCESSORS_ONLN), Ok(Some(..=1)))
}

#[cfg(test)]
impl BusyPoll {
    fn is_idle(&self) -> bool {
        let task = self.idle.take();
        let is_idle = task.is_some();
        self.idle.set(task);
        is_idle
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

    const QUERY: Transfer = Transfer {
        session: 1,
        direction: Direction::ToServer,
        bytes: 50,
    };

    const ANSWER: Duration = Duration::from_micros(40);

    const ALWAYS: BusyPollMode = BusyPollMode::Always(Duration::from_millis(20));

    fn on_both(mode: BusyPollMode, test: impl AsyncFn(Rc<BusyPoll>)) {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let ran = block_on(driver, async {
                let busy = BusyPoll::with_mode(mode);
                busy.start();
                test(busy).await;
            });
            if let Err(error) = ran {
                println!("skipped {driver}: {error}");
            }
        }
    }

    async fn until_idle(busy: &BusyPoll) {
        let mut tries = 0;
        while !busy.is_idle() {
            tries += 1;
            assert!(tries < 10_000, "it polls without end");
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Echoes single bytes until the other end closes, for at most five seconds.
    fn echo(mut socket: StdUnixStream) {
        let give_up = Instant::now() + Duration::from_secs(5);
        let mut byte = [0];
        while Instant::now() < give_up && socket.read_exact(&mut byte).is_ok() {
            if socket.write_all(&byte).is_err() {
                return;
            }
        }
    }

    /// A session that sends a query after every answer.
    fn session(busy: Rc<BusyPoll>) -> JoinHandle<()> {
        let (far, near) = StdUnixStream::pair().unwrap();
        near.set_nonblocking(monoio::utils::is_legacy()).unwrap();
        let mut near = UnixStream::from_std(near).unwrap();
        drop(monoio::spawn(async move {
            loop {
                busy.observe(QUERY);
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
    fn timers_expire_although_traffic_never_ends() {
        for sessions in [1, 16] {
            on_both(ALWAYS, async |busy| {
                let peers: Vec<_> = (0..sessions).map(|_| session(Rc::clone(&busy))).collect();
                for _ in 0..3 {
                    monoio::time::sleep(Duration::from_millis(20)).await;
                }
                let all_running = peers.iter().all(|peer| !peer.is_finished());
                assert!(all_running, "the timer waited for the end of the traffic");
            });
        }
    }

    #[test]
    fn polling_ends_with_the_traffic_and_begins_with_it() {
        on_both(ALWAYS, async |busy| {
            for _ in 0..3 {
                busy.observe(QUERY);
                assert!(!busy.is_idle());
                until_idle(&busy).await;
            }
        });
    }

    #[test]
    fn auto_polls_where_it_saves_time_and_then_stops() {
        // The time to wake is simulated, and that of the answers.
        for (wake, polls) in [(Duration::ZERO, false), (ANSWER, true)] {
            on_both(BusyPollMode::Auto, async |busy| {
                until_idle(&busy).await;
                let mut now = Instant::now();
                for _ in 0..120 {
                    busy.observe_at(QUERY, || now);
                    let until = busy.poll_until.get();
                    now += match until.is_some_and(|until| now + ANSWER < until) {
                        true => ANSWER,
                        false => ANSWER + wake,
                    };
                }
                assert_eq!(busy.poll_until.get().is_some(), polls);
                until_idle(&busy).await;
            });
        }
    }

    #[test]
    fn mode_off_does_nothing() {
        on_both(BusyPollMode::Off, async |off| {
            off.observe(QUERY);
            assert_eq!(off.poll_until.get(), None);
            assert!(!off.is_idle(), "there is no task");
        });
    }
}
