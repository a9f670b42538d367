//! The error of `verify` when there is nothing to verify.

use crate::cli::output::{EX_NOINPUT, EX_UNAVAILABLE, EX_USAGE};

/// A wrong command line, setting or input file: there is no report.
pub(super) struct UsageError {
    pub(super) exit_code: u8,
    pub(super) errors: Vec<String>,
}

impl UsageError {
    pub(super) fn usage(errors: Vec<String>) -> Self {
        let exit_code = EX_USAGE;
        Self { exit_code, errors }
    }

    pub(super) fn unavailable(error: impl Into<String>) -> Self {
        Self {
            exit_code: EX_UNAVAILABLE,
            errors: vec![error.into()],
        }
    }

    pub(super) fn no_input(error: impl Into<String>) -> Self {
        Self {
            exit_code: EX_NOINPUT,
            errors: vec![error.into()],
        }
    }
}
