//! The native module of the Python package `teesql`: the crate `teesql` for Python, by PyO3.
//!
//! A function that takes time returns an [`operation::Operation`]: a future with a socket, which Python polls when the socket
//! is readable, by `select` or by asyncio. Log lines and servers that a verifier has to decide about are queued in a
//! [`mailbox::Mailbox`], which one Python thread reads.
//!
//! So a native thread never takes the interpreter's lock, and a Python thread never waits in native code: the lock is not
//! held during a wait, asyncio is not blocked, Ctrl-C works, and the interpreter can exit at any time. CPython before 3.14
//! ends a thread that asks for the lock during the exit, which would unwind through native frames.
//!
//! It must never call back into Python, except to build values and exceptions for its caller.

mod error;
mod forwarder;
mod leader;
mod log;
mod mailbox;
mod operation;
mod policy;
mod queue;
mod values;
mod verification;
mod verifier;
mod wake;

use std::sync::OnceLock;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

/// The module that Python imports.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::forwarder::{Builder, Forwarder};
    #[pymodule_export]
    use crate::leader::{
        parse_manifest, query_manifest_records, resolve_leader, server_of_leader_url,
    };
    #[pymodule_export]
    use crate::log::set_log_level;
    #[pymodule_export]
    use crate::mailbox::Mailbox;
    #[pymodule_export]
    use crate::operation::Operation;
    #[pymodule_export]
    use crate::policy::{Identity, Policy};
    #[pymodule_export]
    use crate::reason_codes;
    #[pymodule_export]
    use crate::verification::{
        expected_report_data, extract_tdx_quote, read_quote, verify, verify_certificate,
        verify_server,
    };
    #[pymodule_export]
    use crate::verifier::Decision;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::claim_interpreter(module.py())?;
        crate::log::install();
        module.add("VERSION", env!("CARGO_PKG_VERSION"))
    }
}

/// Every reason code that an error can have.
#[pyfunction]
fn reason_codes() -> Vec<&'static str> {
    teesql::reason_codes()
}

/// Reserves the process for the first interpreter that imports the module: log and mailbox belong to one. PyO3 leaves that to
/// CPython, which checks it from 3.12 on. Each interpreter has another module `sys`.
fn claim_interpreter(py: Python<'_>) -> PyResult<()> {
    static FIRST: OnceLock<usize> = OnceLock::new();
    let this = py.import("sys")?.as_ptr() as usize;
    if *FIRST.get_or_init(|| this) == this {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "teesql can be imported by one interpreter of a process only",
    ))
}
