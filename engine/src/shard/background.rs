//! The tasks of a shard that belong to none of its connections (a task nursery): they end with the shard.
//!
//! monoio drops no task that sleeps, not even at the end of its runtime: what such a task owns would never be freed. Nor may
//! one go on after its shard, since the thread may be one that other shards share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use slab::Slab;

/// The tasks that run.
#[derive(Default)]
pub(crate) struct BackgroundTasks {
    has_ended: Cell<bool>,
    running: RefCell<Slab<Option<Waker>>>,
    /// Woken when the last one has ended.
    emptied: RefCell<Option<Waker>>,
}

/// The place of a task among those that run.
struct Place {
    tasks: Rc<BackgroundTasks>,
    key: usize,
}

impl BackgroundTasks {
    /// Runs `task` until the shard ends, when it is dropped wherever it waits.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        if self.has_ended.get() {
            return;
        }
        let place = Place {
            key: self.running.borrow_mut().insert(None),
            tasks: Rc::clone(self),
        };
        drop(monoio::spawn(async move {
            {
                let (ended, task) = (pin!(place.ended()), pin!(task));
                futures_util::future::select(ended, task).await;
            }
            // After the task.
            drop(place);
        }));
    }

    /// Ends all tasks, and waits until they are dropped.
    pub(crate) async fn end(&self) {
        self.has_ended.set(true);
        for waker in self.wakers() {
            waker.wake();
        }
        poll_fn(|cx| {
            if self.running.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.emptied.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wakers(&self) -> Vec<Waker> {
        let running = self.running.borrow();
        let wakers = running.iter().filter_map(|(_, waker)| waker.clone());
        wakers.collect()
    }
}

impl Place {
    async fn ended(&self) {
        poll_fn(|cx| {
            if self.tasks.has_ended.get() {
                return Poll::Ready(());
            }
            if let Some(waker) = self.tasks.running.borrow_mut().get_mut(self.key) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.tasks.running.borrow_mut();
        let waker = running.try_remove(self.key);
        let is_empty = running.is_empty();
        drop(running);
        drop(waker);
        if is_empty && let Some(waker) = self.tasks.emptied.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::driver::{self, IoDriver};

    /// Something that sleeping tasks own.
    fn run(main: impl AsyncFnOnce(Rc<BackgroundTasks>, Rc<()>)) -> usize {
        let owned = Rc::new(());
        let main = main(Rc::default(), Rc::clone(&owned));
        driver::block_on(IoDriver::Epoll, main).unwrap();
        Rc::strong_count(&owned) - 1
    }

    async fn sleep(owned: Rc<()>) {
        monoio::time::sleep(Duration::from_secs(3600)).await;
        drop(owned);
    }

    #[test]
    fn tasks_that_sleep_are_dropped_at_the_end() {
        let left = run(async |tasks, owned| {
            for _ in 0..3 {
                tasks.spawn(sleep(Rc::clone(&owned)));
            }
            let (short, quick) = (Rc::clone(&owned), Rc::clone(&owned));
            tasks.spawn(async move { drop(quick) });
            monoio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(tasks.running.borrow().len(), 3);
            tasks.spawn(sleep(short));
            tasks.end().await;
            assert_eq!(Rc::strong_count(&owned), 2);
            // The shard has ended.
            tasks.spawn(sleep(owned));
        });
        assert_eq!(left, 0);
    }

    #[test]
    fn monoio_does_not_drop_a_task_that_sleeps() {
        let left = run(async |_, owned| {
            drop(monoio::spawn(sleep(owned)));
            monoio::time::sleep(Duration::from_millis(5)).await;
        });
        assert_eq!(left, 1, "BackgroundTasks can go");
    }
}
