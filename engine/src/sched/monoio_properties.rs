//! Characterization tests of monoio: each shows one property that this folder works around,
//! and fails when monoio no longer has it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, Read as _};
use std::net::TcpStream as StdTcpStream;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use monoio::net::{TcpListener, TcpStream};

use crate::io::driver::{IoDriver, block_on};

/// Runs `test` on each driver that this machine has.
fn on_both(test: impl AsyncFn(IoDriver)) {
    for driver in [IoDriver::Epoll, IoDriver::IoUring] {
        if let Err(error) = block_on(driver, test(driver)) {
            println!("skipped {driver}: {error}");
        }
    }
}

/// A task that is polled without a pause until `ends` is true, woken by itself.
fn self_waking_task(mut ends: impl FnMut() -> bool + 'static) -> impl Future<Output = ()> {
    monoio::spawn(poll_fn(move |cx| {
        if ends() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }))
}

#[test]
fn self_waking_task_runs_first() {
    const POLLS: u32 = 10_000;
    on_both(async |driver| {
        let polls = Rc::new(Cell::new(0));
        let counter = Rc::clone(&polls);
        let busy = self_waking_task(move || counter.replace(counter.get() + 1) >= POLLS);
        // It is ready all the time, after the other one.
        let seen = monoio::spawn(async move { polls.get() }).await;
        busy.await;
        assert!(seen > POLLS, "{driver}: it ran after {seen} polls");
    });
}

#[test]
fn timers_wait_until_no_task_is_ready() {
    const TIMER: Duration = Duration::from_millis(1);
    on_both(async |driver| {
        let expired = Rc::new(Cell::new(false));
        let timer = Rc::clone(&expired);
        let sleep = monoio::spawn(async move {
            monoio::time::sleep(TIMER).await;
            timer.set(true);
        });
        // Two tasks that wake each other: not a question of who is first.
        let start = Instant::now();
        let wakers = Rc::new([const { Cell::new(None::<Waker>) }; 2]);
        let tasks = [0, 1].map(|own| {
            let wakers = Rc::clone(&wakers);
            monoio::spawn(poll_fn(move |cx| {
                let [first, second] = &*wakers;
                let (mine, other) = match own {
                    0 => (first, second),
                    _ => (second, first),
                };
                if let Some(waker) = other.take() {
                    waker.wake();
                }
                if start.elapsed() >= 20 * TIMER {
                    return Poll::Ready(());
                }
                mine.set(Some(cx.waker().clone()));
                Poll::Pending
            }))
        });
        for task in tasks {
            task.await;
        }
        assert!(!expired.get(), "{driver}: the timers were checked");
        sleep.await;
        assert!(expired.get());
    });
}

#[test]
fn timers_tick_in_milliseconds() {
    const SLEEPS: u32 = 20;
    on_both(async |driver| {
        let start = Instant::now();
        for _ in 0..SLEEPS {
            monoio::time::sleep(Duration::from_micros(50)).await;
        }
        // Each ends with a tick, and the next tick is a millisecond later.
        let took = start.elapsed();
        let ticks = Duration::from_millis(1) * (SLEEPS - 1);
        assert!(took >= ticks, "{driver}: {took:?}");
    });
}

/// What a client reads from a server that sends nothing: `WouldBlock` from an open socket.
fn read_once(mut client: &StdTcpStream) -> io::Result<usize> {
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    loop {
        match client.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[test]
fn cancelled_accept_leaks_its_socket() {
    for (driver, leaks) in [(IoDriver::Epoll, false), (IoDriver::IoUring, true)] {
        let client = block_on(driver, async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut accept = Box::pin(listener.accept());
            assert!(accept.as_mut().now_or_never().is_none());
            // The kernel has the operation, and completes it with this connection.
            monoio::time::sleep(Duration::from_millis(2)).await;
            let client = StdTcpStream::connect(address).unwrap();
            drop(accept);
            monoio::time::sleep(Duration::from_millis(2)).await;
            client
        });
        match client {
            // The runtime and its listener are gone. Without a leak that ends the connection.
            Ok(client) => {
                let read = read_once(&client);
                let open = matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                assert_eq!(open, leaks, "{driver}: {read:?}");
            }
            Err(error) => println!("skipped {driver}: {error}"),
        }
    }
}

/// No property to work around: it shows that connects are not like accepts.
#[test]
fn cancelled_connect_closes_its_socket() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    on_both(async |driver| {
        {
            let mut connect = pin!(TcpStream::connect_addr(address));
            assert!(connect.as_mut().now_or_never().is_none());
        }
        monoio::time::sleep(Duration::from_millis(2)).await;
        let (server, _) = listener.accept().unwrap();
        let read = read_once(&server);
        assert!(matches!(read, Ok(0)), "{driver}: {read:?}");
    });
}
