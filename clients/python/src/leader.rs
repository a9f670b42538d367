//! The leader manifest.

use std::net::SocketAddr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use teesql::{LeaderOptions, ManifestSigner};

use crate::error::checked;
use crate::forwarder::duration;
use crate::operation::{Operation, Value};
use crate::values::manifest_dict;

fn options(
    timeout: f64,
    dns_server: Option<&str>,
    cluster: Option<String>,
) -> PyResult<LeaderOptions> {
    let mut options = LeaderOptions::default().timeout(duration(timeout)?);
    if let Some(server) = dns_server {
        let server: SocketAddr = server
            .parse()
            .map_err(|_| PyValueError::new_err("a name server must be IP:PORT"))?;
        options = options.dns_server(server);
    }
    if let Some(cluster) = cluster {
        options = options.cluster(cluster);
    }
    Ok(options)
}

/// Queries and verifies the manifest of a domain.
#[pyfunction]
#[pyo3(signature = (domain, signer, *, timeout, dns_server=None, cluster=None))]
pub(crate) fn resolve_leader(
    domain: String,
    signer: [u8; 20],
    timeout: f64,
    dns_server: Option<&str>,
    cluster: Option<String>,
) -> PyResult<Operation> {
    let options = options(timeout, dns_server, cluster)?;
    Operation::new(async move {
        let manifest =
            teesql::resolve_leader(&domain, ManifestSigner::from(signer), &options).await?;
        Ok(Value::Manifest(Box::new(manifest)))
    })
}

/// Queries the TXT records of a domain's manifest.
#[pyfunction]
#[pyo3(signature = (domain, *, timeout, dns_server=None))]
pub(crate) fn query_manifest_records(
    domain: String,
    timeout: f64,
    dns_server: Option<&str>,
) -> PyResult<Operation> {
    let options = options(timeout, dns_server, None)?;
    Operation::new(async move {
        let records = teesql::query_manifest_records(&domain, &options).await?;
        Ok(Value::Records(records))
    })
}

/// Verifies the text of a manifest.
#[pyfunction]
#[pyo3(signature = (text, signer, now=None))]
pub(crate) fn parse_manifest<'py>(
    py: Python<'py>,
    text: &str,
    signer: [u8; 20],
    now: Option<u64>,
) -> PyResult<Bound<'py, PyDict>> {
    let manifest = teesql::parse_manifest(text, ManifestSigner::from(signer), now);
    manifest_dict(py, &checked(py, manifest)?)
}

/// Host and port of a leader URL.
#[pyfunction]
pub(crate) fn server_of_leader_url(py: Python<'_>, url: &str) -> PyResult<(String, u16)> {
    checked(py, teesql::server_of_leader_url(url))
}
