//! Errors of the crate as exceptions of the package.

use pyo3::prelude::*;
use teesql::Error;

/// The exception for an error.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let build = || {
        let make = py.import("teesql._errors")?.getattr("from_native")?;
        let arguments = (
            error.kind().name(),
            error.code(),
            error.to_string(),
            error.messages().to_vec(),
        );
        make.call1(arguments)
    };
    match build() {
        Ok(exception) => PyErr::from_value(exception),
        Err(failed) => failed,
    }
}

/// The result of a function of the crate, with its error as an exception.
pub(crate) fn checked<T>(py: Python<'_>, result: Result<T, Error>) -> PyResult<T> {
    result.map_err(|error| raise(py, &error))
}
