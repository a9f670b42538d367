//! A future that Python polls: it waits for its socket in its own way (`select`, asyncio), and polls then.
//!
//! It must never be polled by a thread of Rust's: whoever waits does the work, so that nothing is left running when nobody
//! waits any more.

use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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

type Running = Pin<Box<dyn Future<Output = Result<Value, teesql::Error>> + Send>>;

/// Something that takes time.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Operation {
    /// `None` once it has ended.
    future: Mutex<Option<Running>>,
    wake: Arc<WakeSocket>,
    waker: Waker,
}

impl Operation {
    pub(crate) fn new(
        future: impl Future<Output = Result<Value, teesql::Error>> + Send + 'static,
    ) -> PyResult<Self> {
        let wake = Arc::new(WakeSocket::new()?);
        let waker = Waker::from(Arc::clone(&wake));
        let future: Running = Box::pin(future);
        Ok(Self {
            future: Mutex::new(Some(future)),
            wake,
            waker,
        })
    }

    fn take(&self) -> Option<Running> {
        self.future
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[pymethods]
impl Operation {
    /// The descriptor that is readable when it has to be polled.
    fn fileno(&self) -> RawFd {
        self.wake.fileno()
    }

    /// `None` while it goes on, a tuple with the result when it has ended. Raises what it failed with.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.wake.clear();
        let Some(mut future) = self.take() else {
            return Err(PyRuntimeError::new_err("the operation has ended"));
        };
        match future.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            Poll::Pending => {
                let mut slot = self.future.lock().unwrap_or_else(PoisonError::into_inner);
                *slot = Some(future);
                Ok(None)
            }
            Poll::Ready(Err(error)) => Err(raise(py, &error)),
            Poll::Ready(Ok(value)) => {
                let value = match value {
                    Value::Nothing => py.None().into_bound(py),
                    Value::Verified(verified) => verified_dict(py, &verified)?.into_any(),
                    Value::Manifest(manifest) => manifest_dict(py, &manifest)?.into_any(),
                    Value::Records(records) => records.into_pyobject(py)?.into_any(),
                };
                Ok(Some(PyTuple::new(py, [value])?))
            }
        }
    }

    /// Ends it, whatever it does.
    fn cancel(&self) {
        drop_elsewhere(self.take());
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Drops a value on a thread for that: it may wait for other threads, and this one has the interpreter's lock.
pub(crate) fn drop_elsewhere<T: Send + 'static>(value: Option<T>) {
    if let Some(value) = value {
        let reaper = std::thread::Builder::new().name("teesql-drop".to_owned());
        // Without another thread it is dropped here.
        let _ = reaper.spawn(move || drop(value));
    }
}
