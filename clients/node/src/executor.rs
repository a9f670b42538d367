//! An executor on demand: a thread that polls futures, which starts with the first one and ends with the last.
//!
//! The JavaScript thread does not poll them, since a future of the crate `teesql` may compute when it is polled. The thread
//! does not stay, since no thread may be left after the last forwarder was closed.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use napi::Status;
use napi::bindgen_prelude::{Function, ToNapiValue};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::{Arguments, ErrorParts, Outcome, outcome};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A callback in JavaScript, `(error, value)`. While it exists, the process does not end for lack of work.
type Callback<T> = ThreadsafeFunction<Arguments<T>, (), Arguments<T>, Status, false>;

/// Where tasks are sent to. `None`: there is no thread.
static TASKS: Mutex<Option<mpsc::UnboundedSender<Task>>> = Mutex::new(None);

fn tasks() -> MutexGuard<'static, Option<mpsc::UnboundedSender<Task>>> {
    TASKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a future, and calls `done` with its result in JavaScript.
///
/// # Errors
/// The callback cannot be kept.
pub(crate) fn run<T>(
    done: &Function<'_, Arguments<T>, ()>,
    future: impl Future<Output = Result<T, teesql::Error>> + Send + 'static,
) -> napi::Result<()>
where
    T: ToNapiValue + Send + 'static,
{
    let callback = done.build_threadsafe_function().build()?;
    let mut done = Done(Some(callback));
    let task: Task = Box::pin(async move { done.call(outcome(future.await)) });
    // The callback learns of an error by being dropped.
    spawn(task);
    Ok(())
}

/// Calls a callback exactly once: with an error if it is dropped before.
struct Done<T: ToNapiValue + 'static>(Option<Callback<T>>);

impl<T: ToNapiValue + 'static> Done<T> {
    fn call(&mut self, outcome: Outcome<T>) {
        if let Some(callback) = self.0.take() {
            // Another status than Ok means that the JavaScript thread is ending.
            callback.call(outcome.into(), ThreadsafeFunctionCallMode::NonBlocking);
        }
    }
}

impl<T: ToNapiValue + 'static> Drop for Done<T> {
    fn drop(&mut self) {
        self.call((
            Some(ErrorParts::internal(
                "the operation has ended by a bug, or no thread can be created",
            )),
            None,
        ));
    }
}

fn spawn(mut task: Task) {
    let mut tasks = tasks();
    if let Some(sender) = &*tasks {
        match sender.send(task) {
            Ok(()) => return,
            // Its thread has ended by a bug.
            Err(unsent) => task = unsent.0,
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new().name("teesql-node".to_owned());
    if thread.spawn(|| run_tasks(task, receiver)).is_ok() {
        *tasks = Some(sender);
    }
}

/// The thread, from the first task to the last.
fn run_tasks(first: Task, mut arriving: mpsc::UnboundedReceiver<Task>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return;
    };
    runtime.block_on(async {
        let mut running = JoinSet::new();
        running.spawn(first);
        loop {
            tokio::select! {
                biased;
                Some(task) = arriving.recv() => {
                    running.spawn(task);
                }
                ended = running.join_next() => {
                    if ended.is_some() {
                        continue;
                    }
                    // Under the lock, so that no task arrives after the decision to end.
                    let mut tasks = tasks();
                    match arriving.try_recv() {
                        Ok(task) => {
                            running.spawn(task);
                        }
                        Err(_) => {
                            *tasks = None;
                            return;
                        }
                    }
                }
            }
        }
    });
}
