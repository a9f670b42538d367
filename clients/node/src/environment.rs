//! The forwarders of one JavaScript thread, which end with it.
//!
//! Node.js drops the objects of a thread that ends, but a forwarder that is starting has no object yet. So each forwarder has
//! a slot here, which is emptied by a cleanup hook of Node.js or by a handler of the event `exit`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use napi::Env;
use napi_derive::napi;
use teesql::Forwarder;

#[derive(Default)]
enum State {
    #[default]
    Starting,
    Running(Arc<Forwarder>),
    /// The JavaScript thread has ended.
    Ended,
}

/// A place for one forwarder.
#[derive(Default)]
pub(crate) struct Slot(Mutex<State>);

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a forwarder in that has started. Returns it if the JavaScript thread has ended in the meantime.
    pub(crate) fn fill(&self, forwarder: Forwarder) -> Option<Forwarder> {
        let mut state = self.state();
        match *state {
            State::Starting => {
                *state = State::Running(Arc::new(forwarder));
                None
            }
            State::Running(_) | State::Ended => Some(forwarder),
        }
    }

    pub(crate) fn forwarder(&self) -> Option<Arc<Forwarder>> {
        match &*self.state() {
            State::Running(forwarder) => Some(Arc::clone(forwarder)),
            State::Starting | State::Ended => None,
        }
    }

    fn end(&self) -> Option<Arc<Forwarder>> {
        match std::mem::replace(&mut *self.state(), State::Ended) {
            State::Running(forwarder) => Some(forwarder),
            State::Starting | State::Ended => None,
        }
    }
}

type Slots = Arc<Mutex<Vec<Weak<Slot>>>>;

/// The forwarders of the thread that has made it.
#[napi]
pub struct Environment {
    slots: Slots,
}

#[napi]
impl Environment {
    /// # Errors
    /// The hook cannot be added.
    #[napi(constructor)]
    pub fn new(env: Env) -> napi::Result<Self> {
        let slots = Slots::default();
        env.add_env_cleanup_hook(Arc::clone(&slots), |slots| end(&slots))?;
        Ok(Self { slots })
    }

    /// Ends all of its forwarders, for a process that is about to end.
    #[napi(catch_unwind)]
    pub fn end(&self) {
        end(&self.slots);
    }
}

impl Environment {
    /// A new slot, for as long as it is used elsewhere.
    pub(crate) fn slot(&self) -> Arc<Slot> {
        let slot = Arc::<Slot>::default();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        slot
    }
}

/// Ends all: first their sessions, all at the same time, so that dropping them does not wait for one after the other.
fn end(slots: &Mutex<Vec<Weak<Slot>>>) {
    let slots = std::mem::take(&mut *slots.lock().unwrap_or_else(PoisonError::into_inner));
    let forwarders = slots.iter().filter_map(|slot| slot.upgrade()?.end());
    let forwarders: Vec<_> = forwarders.collect();
    for forwarder in &forwarders {
        forwarder.terminate();
    }
}
