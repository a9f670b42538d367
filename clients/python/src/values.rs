//! Values of the crate as plain dictionaries, of which `teesql._values` makes its classes.

use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use teesql::{Claims, Failure, Manifest, Verified};

/// Unix time in seconds.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// The certificates of a chain.
pub(crate) fn chain_tuple<'py>(
    py: Python<'py>,
    chain: &[Vec<u8>],
) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, chain.iter().map(|der| PyBytes::new(py, der)))
}

pub(crate) fn claims_dict<'py>(py: Python<'py>, claims: &Claims) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("mrtd", &claims.mrtd)?;
    dict.set_item("rtmr", PyTuple::new(py, &claims.rtmr)?)?;
    dict.set_item("report_data", &claims.report_data)?;
    dict.set_item("is_debug", claims.is_debug)?;
    dict.set_item("tcb_status", &claims.tcb_status)?;
    dict.set_item("advisories", PyTuple::new(py, &claims.advisories)?)?;
    dict.set_item("app_id", &claims.app_id)?;
    dict.set_item("compose_hash", &claims.compose_hash)?;
    dict.set_item("instance_id", &claims.instance_id)?;
    dict.set_item("os_image_hash", &claims.os_image_hash)?;
    Ok(dict)
}

pub(crate) fn verified_dict<'py>(
    py: Python<'py>,
    verified: &Verified,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("claims", claims_dict(py, &verified.claims)?)?;
    dict.set_item("quote", PyBytes::new(py, &verified.quote))?;
    dict.set_item("chain", chain_tuple(py, &verified.chain)?)?;
    dict.set_item("fingerprint", &verified.fingerprint)?;
    dict.set_item("valid_until", seconds(verified.valid_until))?;
    Ok(dict)
}

pub(crate) fn manifest_dict<'py>(
    py: Python<'py>,
    manifest: &Manifest,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("cluster", &manifest.cluster)?;
    dict.set_item("leader_instance", &manifest.leader_instance)?;
    dict.set_item("leader_url", &manifest.leader_url)?;
    dict.set_item("host", &manifest.host)?;
    dict.set_item("port", manifest.port)?;
    dict.set_item("epoch", manifest.epoch)?;
    dict.set_item("valid_until", manifest.valid_until)?;
    dict.set_item("canonical_body", &manifest.canonical_body)?;
    Ok(dict)
}

pub(crate) fn failure_dict<'py>(
    py: Python<'py>,
    failure: &Failure,
) -> PyResult<Bound<'py, PyDict>> {
    let client = failure.client.map(|at| (at.ip().to_string(), at.port()));
    let dict = PyDict::new(py);
    dict.set_item("sequence", failure.sequence)?;
    dict.set_item("kind", failure.to_error().kind().name())?;
    dict.set_item("code", failure.code)?;
    dict.set_item("message", &failure.message)?;
    dict.set_item("sqlstate", &failure.sqlstate)?;
    dict.set_item("in_session", failure.in_session)?;
    dict.set_item("client", client)?;
    dict.set_item("at", seconds(failure.at))?;
    Ok(dict)
}
