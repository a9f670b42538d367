//! Forwarders.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use teesql::ManifestSigner;

use crate::error::checked;
use crate::mailbox::Mailbox;
use crate::operation::{Operation, Value, drop_elsewhere};
use crate::policy::{Identity, Policy};
use crate::values::failure_dict;
use crate::verifier::Remote;

/// A time that Python gives in seconds.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err("a time must be a number of seconds, 0 or more"))
}

/// `teesql::Builder`, changed in place.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Builder(Mutex<Option<teesql::Builder>>);

impl Builder {
    fn take(&self) -> PyResult<teesql::Builder> {
        let mut builder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || PyRuntimeError::new_err("the forwarder was built already");
        builder.take().ok_or_else(gone)
    }

    fn change(&self, change: impl FnOnce(teesql::Builder) -> teesql::Builder) -> PyResult<()> {
        let changed = change(self.take()?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
        Ok(())
    }
}

#[pymethods]
impl Builder {
    /// With the settings in the environment.
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Some(teesql::Forwarder::from_env())))
    }

    fn url(&self, url: String) -> PyResult<()> {
        self.change(|builder| builder.url(url))
    }

    fn target(&self, target: String) -> PyResult<()> {
        self.change(|builder| builder.target(target))
    }

    fn cluster(&self, domain: String, signer: [u8; 20]) -> PyResult<()> {
        self.change(|builder| builder.cluster(domain, ManifestSigner::from(signer)))
    }

    fn identity(&self, identity: &Identity) -> PyResult<()> {
        self.change(|builder| builder.identity(identity.0.clone()))
    }

    fn policy(&self, policy: &Policy) -> PyResult<()> {
        self.change(|builder| builder.policy(policy.0.clone()))
    }

    fn verifier(&self, mailbox: &Mailbox, verifier: u64, instead_of_dcap: bool) -> PyResult<()> {
        let remote = Remote {
            mailbox: Arc::clone(&mailbox.0),
            verifier,
        };
        self.change(|builder| {
            if instead_of_dcap {
                builder.dangerous_verifier_instead_of_dcap(remote)
            } else {
                builder.verifier(remote)
            }
        })
    }

    fn verifier_timeout(&self, seconds: f64) -> PyResult<()> {
        let timeout = duration(seconds)?;
        self.change(|builder| builder.verifier_timeout(timeout))
    }

    fn connect_timeout(&self, seconds: f64) -> PyResult<()> {
        let timeout = duration(seconds)?;
        self.change(|builder| builder.connect_timeout(timeout))
    }

    fn start_timeout(&self, seconds: f64) -> PyResult<()> {
        let timeout = duration(seconds)?;
        self.change(|builder| builder.start_timeout(timeout))
    }

    fn drain_timeout(&self, seconds: f64) -> PyResult<()> {
        let timeout = duration(seconds)?;
        self.change(|builder| builder.drain_timeout(timeout))
    }

    fn setting(&self, name: String, value: String) -> PyResult<()> {
        self.change(|builder| builder.setting(name, value))
    }

    /// The forwarder, which has not started yet.
    fn build(&self) -> PyResult<Forwarder> {
        let builder = self.take()?;
        let start: BoxFuture<'static, _> = Box::pin(async move {
            let started = builder.start().await?;
            Ok(Arc::new(Owned(Some(started))))
        });
        Ok(Forwarder {
            start: Some(start.shared()),
            started: Arc::default(),
        })
    }
}

/// A forwarder that runs. Dropping it does not wait for its sessions.
struct Owned(Option<teesql::Forwarder>);

impl Drop for Owned {
    fn drop(&mut self) {
        // One that was stopped, or that is the parent process's, has nothing to wait for.
        let is_running = |forwarder: &teesql::Forwarder| forwarder.host_and_port().is_ok();
        if self.0.as_ref().is_some_and(is_running) {
            drop_elsewhere(self.0.take());
        }
    }
}

type Start = Shared<BoxFuture<'static, Result<Arc<Owned>, teesql::Error>>>;

/// A forwarder. All that wait for its start share one.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Forwarder {
    /// `None` when this is dropped.
    start: Option<Start>,
    started: Arc<OnceLock<Arc<Owned>>>,
}

impl Forwarder {
    fn owned(&self) -> PyResult<&Arc<Owned>> {
        let not_yet = || PyRuntimeError::new_err("the forwarder was not started");
        self.started.get().ok_or_else(not_yet)
    }

    fn running(&self) -> PyResult<&teesql::Forwarder> {
        let gone = || PyRuntimeError::new_err("the forwarder has ended");
        self.owned()?.0.as_ref().ok_or_else(gone)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let is_starting = |start: &Start| start.peek().is_none();
        if self.start.as_ref().is_some_and(is_starting) {
            drop_elsewhere(self.start.take());
        }
    }
}

#[pymethods]
impl Forwarder {
    /// Waits until drivers can connect.
    fn start(&self) -> PyResult<Operation> {
        let start = self.start.clone();
        let started = Arc::clone(&self.started);
        let gone = || PyRuntimeError::new_err("the forwarder has ended");
        let start = start.ok_or_else(gone)?;
        Operation::new(async move {
            let forwarder = start.await?;
            let _ = started.set(forwarder);
            Ok(Value::Nothing)
        })
    }

    fn host_and_port(&self, py: Python<'_>) -> PyResult<(String, u16)> {
        checked(py, self.running()?.host_and_port())
    }

    fn dsn(&self, py: Python<'_>) -> PyResult<String> {
        checked(py, self.running()?.dsn())
    }

    fn rewrite(&self, py: Python<'_>, url: &str) -> PyResult<String> {
        checked(py, self.running()?.rewrite(url))
    }

    fn last_failure<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let failure = self.running()?.last_failure();
        failure
            .map(|failure| failure_dict(py, &failure))
            .transpose()
    }

    fn failures_after<'py>(&self, py: Python<'py>, sequence: u64) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for failure in self.running()?.failures_after(sequence) {
            list.append(failure_dict(py, &failure)?)?;
        }
        Ok(list)
    }

    /// Lets sessions finish, then terminates them.
    fn stop(&self) -> PyResult<Operation> {
        let owned = Arc::clone(self.owned()?);
        Operation::new(async move {
            if let Some(forwarder) = &owned.0 {
                forwarder.stop().await?;
            }
            Ok(Value::Nothing)
        })
    }

    /// Ends sessions that `stop` waits for.
    fn terminate(&self) -> PyResult<()> {
        self.running()?.terminate();
        Ok(())
    }
}
