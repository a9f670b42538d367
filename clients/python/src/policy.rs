//! What a server has to prove, and what a client presents.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// `teesql::Policy`, changed in place.
#[pyclass(module = "teesql._native")]
#[derive(Default)]
pub(crate) struct Policy(pub(crate) teesql::Policy);

impl Policy {
    fn change(&mut self, change: impl FnOnce(teesql::Policy) -> teesql::Policy) {
        self.0 = change(std::mem::take(&mut self.0));
    }
}

#[pymethods]
impl Policy {
    #[new]
    fn new() -> Self {
        Self(teesql::Policy::new())
    }

    #[staticmethod]
    fn from_env() -> Self {
        Self(teesql::Policy::from_env())
    }

    fn file(&mut self, path: PathBuf) {
        self.change(|policy| policy.file(path));
    }

    /// One more allowed value. `what` is the name of one of the crate's methods, or `rtmr0` to `rtmr3`.
    fn allow(&mut self, what: &str, value: String) -> PyResult<()> {
        let change = move |policy: teesql::Policy| match what {
            "mrtd" => Some(policy.mrtd(value)),
            "rtmr0" => Some(policy.rtmr0(value)),
            "rtmr1" => Some(policy.rtmr1(value)),
            "rtmr2" => Some(policy.rtmr2(value)),
            "rtmr3" => Some(policy.rtmr3(value)),
            "app_id" => Some(policy.app_id(value)),
            "compose_hash" => Some(policy.compose_hash(value)),
            "instance_id" => Some(policy.instance_id(value)),
            "os_image_hash" => Some(policy.os_image_hash(value)),
            "tcb_status" => Some(policy.accept_tcb_status(value)),
            _ => None,
        };
        match change(self.0.clone()) {
            Some(changed) => {
                self.0 = changed;
                Ok(())
            }
            None => Err(PyValueError::new_err(format!("no such value: {what}"))),
        }
    }

    fn allow_debug_td(&mut self) {
        self.change(teesql::Policy::allow_debug_td);
    }

    fn allow_any_server(&mut self) {
        self.change(teesql::Policy::allow_any_server);
    }

    fn allow_simulator(&mut self) {
        self.change(teesql::Policy::allow_simulator);
    }

    fn setting(&mut self, name: String, value: String) {
        self.change(|policy| policy.setting(name, value));
    }
}

/// `teesql::Identity`.
#[pyclass(frozen, module = "teesql._native")]
pub(crate) struct Identity(pub(crate) teesql::Identity);

#[pymethods]
impl Identity {
    #[staticmethod]
    #[pyo3(signature = (address=None))]
    fn guest_agent(address: Option<String>) -> Self {
        Self(match address {
            Some(address) => teesql::Identity::guest_agent_at(address),
            None => teesql::Identity::guest_agent(),
        })
    }

    #[staticmethod]
    fn pem(chain: &[u8], key: &[u8]) -> Self {
        Self(teesql::Identity::pem(chain, key))
    }

    #[staticmethod]
    fn pem_files(chain: PathBuf, key: PathBuf) -> Self {
        Self(teesql::Identity::pem_files(chain, key))
    }

    #[staticmethod]
    fn none() -> Self {
        Self(teesql::Identity::none())
    }
}
