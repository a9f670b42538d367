//! Verification without a connection.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::checked;
use crate::forwarder::duration;
use crate::mailbox::Mailbox;
use crate::operation::{Operation, Value};
use crate::policy::{Identity, Policy};
use crate::values::claims_dict;
use crate::verifier::Remote;

fn verified(result: Result<teesql::Verified, teesql::Error>) -> Result<Value, teesql::Error> {
    result.map(|verified| Value::Verified(Box::new(verified)))
}

/// Verifies a bare quote.
#[pyfunction]
pub(crate) fn verify(quote: Vec<u8>, policy: &Policy) -> PyResult<Operation> {
    let policy = policy.0.clone();
    Operation::new(async move { verified(teesql::verify(&quote, &policy).await) })
}

/// Verifies a certificate chain, leaf first, in DER or PEM.
#[pyfunction]
pub(crate) fn verify_certificate(
    py: Python<'_>,
    chain: Vec<Vec<u8>>,
    policy: &Policy,
) -> PyResult<Operation> {
    let policy = policy.0.clone();
    let chain = checked(py, teesql::bindings::certificates(&chain))?;
    Operation::new(async move { verified(teesql::verify_certificate(&chain, &policy).await) })
}

/// Connects to a server, and verifies it. `verifier` is a mailbox, a verifier's number, whether it decides instead of
/// DCAP, and the seconds that it has.
#[pyfunction]
#[pyo3(signature = (host, port, policy, *, timeout, identity=None, verifier=None))]
pub(crate) fn verify_server(
    host: String,
    port: u16,
    policy: &Policy,
    timeout: f64,
    identity: Option<&Identity>,
    verifier: Option<(PyRef<'_, Mailbox>, u64, bool, f64)>,
) -> PyResult<Operation> {
    let mut options = teesql::ServerOptions::default().timeout(duration(timeout)?);
    if let Some(identity) = identity {
        options = options.identity(identity.0.clone());
    }
    if let Some((mailbox, verifier, instead_of_dcap, seconds)) = verifier {
        let remote = Remote {
            mailbox: Arc::clone(&mailbox.0),
            verifier,
        };
        options = options.verifier_timeout(duration(seconds)?);
        options = if instead_of_dcap {
            options.dangerous_verifier_instead_of_dcap(remote)
        } else {
            options.verifier(remote)
        };
    }
    let policy = policy.0.clone();
    Operation::new(
        async move { verified(teesql::verify_server(&host, port, &policy, &options).await) },
    )
}

/// The quote in a certificate in DER.
#[pyfunction]
pub(crate) fn extract_tdx_quote<'py>(py: Python<'py>, der: &[u8]) -> Option<Bound<'py, PyBytes>> {
    teesql::extract_tdx_quote(der).map(|quote| PyBytes::new(py, &quote))
}

/// What a quote says, unverified.
#[pyfunction]
pub(crate) fn read_quote<'py>(py: Python<'py>, quote: &[u8]) -> PyResult<Bound<'py, PyDict>> {
    claims_dict(py, &checked(py, teesql::read_quote(quote))?)
}

/// The report data of a quote that is bound to this key.
#[pyfunction]
pub(crate) fn expected_report_data<'py>(py: Python<'py>, spki: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &teesql::expected_report_data(spki))
}
