//! The reader of the [`queue`](crate::queue) for Python: one thread waits for the queue's socket, and takes its entries.

use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::log;
use crate::queue::{Entry, Shared};
use crate::verifier::Decision;

/// The reader of the queue.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Mailbox(pub(crate) Arc<Shared>);

#[pymethods]
impl Mailbox {
    /// Makes a queue, and has log lines go there.
    #[new]
    fn new() -> PyResult<Self> {
        let shared = Arc::new(Shared::new()?);
        log::set_target(Arc::clone(&shared));
        Ok(Self(shared))
    }

    /// The descriptor that is readable when there is something to take.
    fn fileno(&self) -> RawFd {
        self.0.fileno()
    }

    /// Takes up to 64 entries: `("log", …)`, `("decide", Decision)`, `("abandoned", number)`, `("lost", number of lines)`.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let (entries, lost) = self.0.take();
        let list = PyList::empty(py);
        for entry in entries {
            list.append(entry_tuple(py, entry)?)?;
        }
        if lost > 0 {
            list.append(("lost", lost))?;
        }
        Ok(list)
    }

    /// Refuses further entries, and the decisions that wait. Log lines can still be taken.
    fn close(&self) {
        log::remove_target(&self.0);
        self.0.close();
    }

    /// Whether it was closed.
    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

fn entry_tuple(py: Python<'_>, entry: Entry) -> PyResult<Bound<'_, PyTuple>> {
    match entry {
        Entry::Line(line) => ("log", line.level, line.target, line.text, line.at).into_pyobject(py),
        Entry::Decide(pending) => ("decide", Decision::new(*pending)).into_pyobject(py),
        Entry::Abandoned(number) => ("abandoned", number).into_pyobject(py),
    }
}
