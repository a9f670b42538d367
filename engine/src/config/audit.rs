//! The settings of the audit log.

use std::fmt;
use std::path::PathBuf;

use super::reader::Reader;
use super::settings;
use super::values::Parsed;

/// Where the audit log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// A file, which is created if it does not exist.
    File(PathBuf),
    /// An open descriptor that the process has inherited.
    Descriptor(u32),
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// Where it is written.
    pub target: AuditTarget,
    /// Whether new sessions are refused while it cannot be written.
    pub required: bool,
}

impl fmt::Display for AuditTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

impl AuditConfig {
    /// `Some(None)` if there is no audit log.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Option<Self>> {
        let target = reader.read(&settings::AUDIT_LOG);
        let required = reader.read(&settings::AUDIT_REQUIRED);
        match (target?, required?) {
            (Some(target), required) => Some(Some(Self { target, required })),
            (None, false) => Some(None),
            (None, true) => {
                reader.missing_counterpart(&settings::AUDIT_REQUIRED, &settings::AUDIT_LOG)
            }
        }
    }
}

/// `off`, `fd:N` or the path of a file. Without a directory it would depend on where the process
/// was started.
pub(super) fn target(text: &str) -> Parsed<Option<AuditTarget>> {
    let expected = "expected off, fd:N or the absolute path of a file";
    if text == "off" {
        return Ok(None);
    }
    if let Some(number) = text.strip_prefix("fd:") {
        return match number.parse() {
            Ok(0) | Err(_) => Err(expected.to_owned()),
            Ok(number) if PathBuf::from(format!("/proc/self/fd/{number}")).exists() => {
                Ok(Some(AuditTarget::Descriptor(number)))
            }
            Ok(number) => Err(format!("descriptor {number} is not open")),
        };
    }
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.ends_with('/') {
        return Err(expected.to_owned());
    }
    Ok(Some(AuditTarget::File(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_off_a_descriptor_or_an_absolute_path() {
        assert_eq!(target("off"), Ok(None));
        assert_eq!(target("fd:2"), Ok(Some(AuditTarget::Descriptor(2))));
        let path = "/var/log/teesql/audit.log";
        assert_eq!(target(path), Ok(Some(AuditTarget::File(path.into()))));
        for wrong in ["", "audit.log", "fd:", "fd:0", "fd:-1", "fd:x", "/var/log/"] {
            let error = target(wrong).unwrap_err();
            assert!(error.starts_with("expected off"), "{wrong}: {error}");
        }
        let error = target("fd:999999").unwrap_err();
        assert_eq!(error, "descriptor 999999 is not open");
    }
}
