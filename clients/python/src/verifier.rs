//! An application's verifier: the server waits in the mailbox until Python has decided about it.
//!
//! It must never accept by itself: a decision that is dropped, for whatever reason, is a failure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use teesql::{Acceptance, BoxFuture, Evidence, Refusal};
use tokio::sync::oneshot;

use crate::queue::{Answer, Pending, Shared};
use crate::values::{chain_tuple, claims_dict};

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The verifier that Python knows by a number.
pub(crate) struct Remote {
    pub(crate) mailbox: Arc<Shared>,
    pub(crate) verifier: u64,
}

impl teesql::Verifier for Remote {
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
            let pending = Pending {
                number,
                verifier: self.verifier,
                evidence: evidence.clone(),
                answer: sender,
            };
            if !self.mailbox.push_decision(pending) {
                return Err(Refusal::Failed(
                    "too many connections wait for the verifier".to_owned(),
                ));
            }
            let mut abandon = Abandon {
                mailbox: &self.mailbox,
                number: Some(number),
            };
            let answer = answer.await;
            abandon.number = None;
            let gone = || Refusal::Failed("the verifier was stopped".to_owned());
            answer.unwrap_or_else(|_| Err(gone()))
        })
    }
}

/// Tells Python when a decision is no longer awaited: its deadline has passed, or the connection has ended.
struct Abandon<'a> {
    mailbox: &'a Shared,
    number: Option<u64>,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.mailbox.abandon(number);
        }
    }
}

/// A server that Python has to decide about. Dropped without a decision, it is refused.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Decision {
    number: u64,
    verifier: u64,
    evidence: Evidence,
    answer: Mutex<Option<oneshot::Sender<Answer>>>,
}

impl Decision {
    pub(crate) fn new(pending: Pending) -> Self {
        Self {
            number: pending.number,
            verifier: pending.verifier,
            evidence: pending.evidence,
            answer: Mutex::new(Some(pending.answer)),
        }
    }

    fn decide(&self, answer: Answer) {
        let mut sender = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.take() {
            // It fails if the decision is no longer awaited.
            let _ = sender.send(answer);
        }
    }
}

#[pymethods]
impl Decision {
    /// Identifies it among those of this process.
    #[getter]
    fn number(&self) -> u64 {
        self.number
    }

    /// The verifier that has to decide.
    #[getter]
    fn verifier(&self) -> u64 {
        self.verifier
    }

    #[getter]
    fn quote<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.evidence.quote)
    }

    #[getter]
    fn chain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        chain_tuple(py, &self.evidence.chain)
    }

    #[getter]
    fn claims<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        claims_dict(py, &self.evidence.claims)
    }

    #[pyo3(signature = (tcb_status=None))]
    fn accept(&self, tcb_status: Option<String>) {
        self.decide(Ok(match tcb_status {
            Some(status) => Acceptance::with_tcb_status(status),
            None => Acceptance::default(),
        }));
    }

    fn refuse(&self, why: String) {
        self.decide(Err(Refusal::Refused(why)));
    }

    fn fail(&self, why: String) {
        self.decide(Err(Refusal::Failed(why)));
    }

    /// Whether it is no longer awaited.
    fn is_abandoned(&self) -> bool {
        let sender = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}
