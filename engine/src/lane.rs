//! Handshakes in single file.
//!
//! A step of a handshake is some hundred microseconds of computation. When a
//! crowd arrives, hundreds of them are ready in one turn of the loop, and a
//! running session's query would wait for all of them. In the lane one step at
//! a time joins the end of the shard's queue, so that everything else that is
//! ready runs in between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A shard's lane.
#[derive(Clone, Default)]
pub(crate) struct Lane(Rc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: RefCell<VecDeque<Rc<Place>>>,
    /// Woken by the one whose turn it is: from another task, because monoio
    /// 0.2.4 puts a task that wakes itself in front of all others.
    usher: RefCell<Option<Waker>>,
    /// Somebody has been called and has not come yet.
    called: Cell<bool>,
}

#[derive(Default)]
struct Place {
    called: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps the lane moving when the one that was called is gone.
struct Waiting<'a> {
    lane: &'a Lane,
    place: Rc<Place>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.place.called.get() {
            self.lane.0.called.set(false);
            self.lane.wake_usher();
        }
    }
}

impl Lane {
    /// Waits for this task's turn; the turn lasts until its next await.
    pub(crate) async fn turn(&self) {
        let place = Rc::new(Place::default());
        self.0.waiting.borrow_mut().push_back(Rc::clone(&place));
        self.wake_usher();
        // Dropping it, here or with the connection, calls the next.
        let waiting = Waiting { lane: self, place };
        poll_fn(|cx| {
            if waiting.place.called.get() {
                return Poll::Ready(());
            }
            *waiting.place.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake_usher(&self) {
        if let Some(usher) = self.0.usher.take() {
            usher.wake();
        }
    }

    /// Calls one after the other, for as long as the shard lives.
    pub(crate) async fn usher(self) {
        poll_fn(|cx| {
            *self.0.usher.borrow_mut() = Some(cx.waker().clone());
            while !self.0.called.get() {
                let Some(place) = self.0.waiting.borrow_mut().pop_front() else {
                    break;
                };
                // Whose connection has ended while it waited holds no place.
                if Rc::strong_count(&place) > 1 {
                    place.called.set(true);
                    self.0.called.set(true);
                    if let Some(waker) = place.waker.take() {
                        waker.wake();
                    }
                }
            }
            Poll::<()>::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Driver, block_on};

    #[test]
    fn others_run_between_two_steps_and_nobody_is_left_behind() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let main = async {
            let lane = Lane::default();
            drop(monoio::spawn(lane.clone().usher()));
            let steps: Vec<_> = (0..50)
                .map(|number| {
                    let (lane, order) = (lane.clone(), Rc::clone(&order));
                    monoio::spawn(async move {
                        if number == 7 {
                            // Goes away while it waits.
                            let gone = lane.turn();
                            let moment = std::time::Duration::from_millis(1);
                            let _ = monoio::time::timeout(moment, gone).await;
                            return;
                        }
                        lane.turn().await;
                        order.borrow_mut().push(number);
                    })
                })
                .collect();
            for step in steps {
                step.await;
            }
        };
        block_on(Driver::Epoll, main).unwrap();
        let expected: Vec<_> = (0..50).filter(|number| *number != 7).collect();
        assert_eq!(*order.borrow(), expected);
    }
}
