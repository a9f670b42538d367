//! Errors as objects, of which JavaScript makes exceptions.

use napi::bindgen_prelude::FnArgs;
use napi_derive::napi;
use teesql::{Error, ErrorKind};

/// The parts of a `TeesqlError`.
#[napi(object)]
pub struct ErrorParts {
    pub kind: String,
    pub code: String,
    pub message: String,
    pub messages: Vec<String>,
}

impl From<&Error> for ErrorParts {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().name().to_owned(),
            code: error.code().to_owned(),
            message: error.to_string(),
            messages: error.messages().to_vec(),
        }
    }
}

impl ErrorParts {
    /// A bug of this module, or a thread that cannot be created.
    pub(crate) fn internal(message: &str) -> Self {
        Self::new(ErrorKind::System, "internal", message)
    }

    pub(crate) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "stopped", "the forwarder was stopped")
    }

    fn new(kind: ErrorKind, code: &str, message: &str) -> Self {
        Self {
            kind: kind.name().to_owned(),
            code: code.to_owned(),
            message: message.to_owned(),
            messages: vec![message.to_owned()],
        }
    }
}

/// An error or a value: what a function returns, an array in JavaScript.
pub(crate) type Outcome<T> = (Option<ErrorParts>, Option<T>);

/// The same as the two arguments of a callback. Without `FnArgs` a tuple is one argument.
pub(crate) type Arguments<T> = FnArgs<Outcome<T>>;

pub(crate) fn outcome<T>(result: Result<T, Error>) -> Outcome<T> {
    match result {
        Ok(value) => (None, Some(value)),
        Err(error) => (Some(ErrorParts::from(&error)), None),
    }
}
