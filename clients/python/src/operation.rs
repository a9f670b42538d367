//! A future that Python polls when its socket is readable, by `select` or by asyncio.
//!
//! It must never be polled by a native thread: only the Python thread that waits for it does its work, so that nothing
//! continues after the wait has ended.

use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::raise;
use crate::values::{manifest_dict, verified_dict};
use crate::wake::WakeSocket;

/// What an operation can result in.
pub(crate) enum Value {
    Nothing,
    Verified(Box<teesql::Verified>),
    Manifest(Box<teesql::Manifest>),
    Records(Vec<String>),
}

/// Something that takes time.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Operation {
    /// `None` once it has ended, so that nothing stays open while Python still has this.
    running: Mutex<Option<Running>>,
}

struct Running {
    future: Pin<Box<dyn Future<Output = Result<Value, teesql::Error>> + Send>>,
    wake: Arc<WakeSocket>,
    waker: Waker,
}

impl Operation {
    pub(crate) fn new(
        future: impl Future<Output = Result<Value, teesql::Error>> + Send + 'static,
    ) -> PyResult<Self> {
        let wake = Arc::new(WakeSocket::new()?);
        let running = Running {
            future: Box::pin(future),
            waker: Waker::from(Arc::clone(&wake)),
            wake,
        };
        Ok(Self {
            running: Mutex::new(Some(running)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Operation {
    /// The descriptor that is readable when it has to be polled.
    fn fileno(&self) -> PyResult<RawFd> {
        let running = self.lock();
        let wake = running.as_ref().map(|running| running.wake.fileno());
        wake.ok_or_else(has_ended)
    }

    /// `None` while it goes on, a tuple with the result when it has ended. Raises what it failed with.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let mut slot = self.lock();
        let running = slot.as_mut().ok_or_else(has_ended)?;
        running.wake.clear();
        let mut context = Context::from_waker(&running.waker);
        let Poll::Ready(result) = running.future.as_mut().poll(&mut context) else {
            return Ok(None);
        };
        *slot = None;
        drop(slot);
        let value = match result {
            Err(error) => return Err(raise(py, &error)),
            Ok(Value::Nothing) => py.None().into_bound(py),
            Ok(Value::Verified(verified)) => verified_dict(py, &verified)?.into_any(),
            Ok(Value::Manifest(manifest)) => manifest_dict(py, &manifest)?.into_any(),
            Ok(Value::Records(records)) => records.into_pyobject(py)?.into_any(),
        };
        Ok(Some(PyTuple::new(py, [value])?))
    }

    /// Drops the future.
    fn cancel(&self) {
        let running = self.lock().take();
        drop_elsewhere(running);
    }
}

fn has_ended() -> PyErr {
    PyRuntimeError::new_err("the operation has ended")
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Drops a value on a new thread, since that may wait for other threads while this one has the interpreter's lock.
pub(crate) fn drop_elsewhere<T: Send + 'static>(value: Option<T>) {
    if let Some(value) = value {
        let builder = std::thread::Builder::new().name("teesql-drop".to_owned());
        // If no thread can be created, it is dropped here.
        let _ = builder.spawn(move || drop(value));
    }
}
