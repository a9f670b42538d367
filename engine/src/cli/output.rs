//! What a command that runs once says, and its exit code.

use crate::app::error::{ErrorKind, StartError};
use std::io::{self, Write as _};
use std::process::ExitCode;

use zeroize::Zeroizing;

/// sysexits.h: the configuration or the command line is wrong.
pub const EX_USAGE: u8 = 64;
/// sysexits.h: a file cannot be read, or holds nothing of the kind.
pub const EX_NOINPUT: u8 = 66;
/// sysexits.h: a service that is needed cannot be had.
pub const EX_UNAVAILABLE: u8 = 69;
/// sysexits.h: an operating system error.
pub const EX_OSERR: u8 = 71;
/// sysexits.h: a file cannot be made.
pub const EX_CANTCREAT: u8 = 73;
/// sysexits.h: reading or writing failed.
pub const EX_IOERR: u8 = 74;
/// sysexits.h: somebody refuses us.
pub const EX_NOPERM: u8 = 77;

/// The exit code for a process that could not start or go on.
#[must_use]
pub fn start_error_code(error: &StartError) -> u8 {
    match error.kind() {
        ErrorKind::Configuration => EX_USAGE,
        ErrorKind::Unavailable => EX_UNAVAILABLE,
        ErrorKind::System => EX_OSERR,
    }
}

/// Text for standard output, errors, and an exit code.
pub struct CommandOutput {
    out: Zeroizing<String>,
    complaints: Vec<String>,
    code: u8,
}

impl CommandOutput {
    /// Success; `text` goes out as it is.
    #[must_use]
    pub fn text(text: impl Into<Zeroizing<String>>) -> Self {
        Self {
            out: text.into(),
            complaints: Vec::new(),
            code: 0,
        }
    }

    /// Failure.
    #[must_use]
    pub fn error(code: u8, why: String) -> Self {
        Self::errors(code, &[why])
    }

    /// Failure for several reasons.
    #[must_use]
    pub fn errors(code: u8, why: &[String]) -> Self {
        Self {
            out: Zeroizing::default(),
            complaints: why.iter().map(|why| format!("error: {why}")).collect(),
            code,
        }
    }

    /// The same with another exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same with warnings before all other complaints.
    #[must_use]
    pub fn with_warnings(mut self, warnings: &[String]) -> Self {
        let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
        self.complaints.splice(0..0, warnings);
        self
    }

    /// Says it. A secret that did not get out completely is a failure.
    #[must_use]
    pub fn print(self) -> ExitCode {
        for complaint in &self.complaints {
            let _ = writeln!(io::stderr(), "{complaint}");
        }
        let mut stdout = io::stdout();
        let said = stdout.write_all(self.out.as_bytes());
        match said.and_then(|()| stdout.flush()) {
            Ok(()) => ExitCode::from(self.code),
            Err(_) => ExitCode::from(EX_IOERR),
        }
    }
}
