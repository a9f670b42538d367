//! The output of a one-shot command, and its exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use zeroize::Zeroizing;

use crate::app::error::{ErrorKind, StartError};

/// sysexits.h: the configuration or the command line is wrong.
pub const EX_USAGE: u8 = 64;
/// sysexits.h: the input is not as it should be.
pub const EX_DATAERR: u8 = 65;
/// sysexits.h: an input file cannot be read, or does not contain what was expected.
pub const EX_NOINPUT: u8 = 66;
/// sysexits.h: a service is unavailable.
pub const EX_UNAVAILABLE: u8 = 69;
/// sysexits.h: an error of the operating system.
pub const EX_OSERR: u8 = 71;
/// sysexits.h: an output file cannot be created.
pub const EX_CANTCREAT: u8 = 73;
/// sysexits.h: reading or writing failed.
pub const EX_IOERR: u8 = 74;
/// sysexits.h: permission denied.
pub const EX_NOPERM: u8 = 77;

/// The exit code of a process that could not start, or that stopped because of an error.
#[must_use]
pub fn start_error_code(error: &StartError) -> u8 {
    match error.kind() {
        ErrorKind::Configuration => EX_USAGE,
        ErrorKind::Unavailable => EX_UNAVAILABLE,
        ErrorKind::System => EX_OSERR,
    }
}

/// Text for standard output, messages for standard error, and an exit code.
pub struct CommandOutput {
    stdout: Zeroizing<String>,
    messages: Vec<String>,
    code: u8,
    /// Whether a failure to write the text is an error.
    must_write: bool,
}

impl CommandOutput {
    /// Success, with `text` for standard output.
    #[must_use]
    pub fn text(text: impl Into<Zeroizing<String>>) -> Self {
        Self {
            stdout: text.into(),
            messages: Vec::new(),
            code: 0,
            must_write: true,
        }
    }

    /// Failure.
    #[must_use]
    pub fn error(code: u8, error: String) -> Self {
        Self::errors(code, &[error])
    }

    /// Failure for several reasons.
    #[must_use]
    pub fn errors(code: u8, errors: &[String]) -> Self {
        Self::text(String::new()).with_errors(code, errors)
    }

    /// Adds errors, and sets the exit code.
    #[must_use]
    pub fn with_errors(mut self, code: u8, errors: &[String]) -> Self {
        self.messages
            .extend(errors.iter().map(|error| format!("error: {error}")));
        self.with_code(code)
    }

    /// Sets the exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Adds warnings before all other messages.
    #[must_use]
    pub fn with_warnings(mut self, warnings: &[String]) -> Self {
        let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
        self.messages.splice(0..0, warnings);
        self
    }

    /// Adds a note after the warnings.
    #[must_use]
    pub fn with_note(mut self, note: Option<String>) -> Self {
        self.messages
            .extend(note.map(|note| format!("note: {note}")));
        self
    }

    /// Ignores failures to write the text. A reader such as `grep -q` may close the pipe early.
    #[must_use]
    pub fn best_effort(self) -> Self {
        let must_write = false;
        Self { must_write, ..self }
    }

    /// Prints the text and the messages. Fails if the text, which may be a secret, cannot be written
    /// completely.
    #[must_use]
    pub fn print(self) -> ExitCode {
        let mut stdout = io::stdout();
        let written = stdout.write_all(self.stdout.as_bytes());
        let written = written.and_then(|()| stdout.flush());
        for message in &self.messages {
            let _ = writeln!(io::stderr(), "{message}");
        }
        match written {
            Err(_) if self.must_write => ExitCode::from(EX_IOERR),
            _ => ExitCode::from(self.code),
        }
    }
}
