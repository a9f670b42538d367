//! The setting of the control socket, where operators on this machine ask for the connections.

use std::path::{Path, PathBuf};

use super::layers::Layers;
use super::reader::{Reader, read_all};
use super::values::Parsed;
use super::{Errors, settings};

/// Where the socket is, unless it is set: the `RuntimeDirectory` of the systemd unit.
pub(crate) const STANDARD_PATH: &str = "/run/teesql/control.sock";
/// Longest path of a Unix socket in bytes: `sun_path` has 108 with its end. [unix(7)]
const MAX_PATH: usize = 107;

/// Whether and where there is a control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlSocket {
    /// There is none.
    Off,
    /// At the standard path, if its directory exists. The sidecar also runs without it.
    Auto,
    /// Here, or the sidecar does not start.
    Path(PathBuf),
}

impl ControlSocket {
    /// The path; `None` if there is no socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::Auto => Some(Path::new(STANDARD_PATH)),
            Self::Path(path) => Some(path),
        }
    }
}

/// The configuration of the commands `sessions` and `kill`.
pub struct ControlConfig {
    /// Where the sidecar listens.
    pub socket: ControlSocket,
    /// Unknown settings in the environment.
    pub warnings: Vec<String>,
}

impl ControlConfig {
    /// Parses and checks the settings of [`Scope::Control`](super::Scope::Control).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let (config, warnings) = read_all(layers, Self::read)?;
        Ok(Self { warnings, ..config })
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            socket: reader.read(&settings::CONTROL_SOCKET)?,
            warnings: Vec::new(),
        })
    }
}

/// `off`, `auto` or an absolute path. Without a directory it would depend on where the process was started.
pub(super) fn socket(text: &str) -> Parsed<ControlSocket> {
    match text {
        "off" => return Ok(ControlSocket::Off),
        "auto" => return Ok(ControlSocket::Auto),
        _ => {}
    }
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.ends_with('/') {
        return Err("expected auto, off or the absolute path of a socket".to_owned());
    }
    if text.len() > MAX_PATH {
        return Err(format!("the path of a socket has at most {MAX_PATH} bytes"));
    }
    Ok(ControlSocket::Path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_off_automatic_or_at_an_absolute_path() {
        assert_eq!(socket("off").unwrap().path(), None);
        assert_eq!(
            socket("auto").unwrap().path(),
            Some(Path::new(STANDARD_PATH))
        );
        let path = "/run/teesql/other.sock";
        assert_eq!(socket(path), Ok(ControlSocket::Path(path.into())));
        for wrong in ["", "control.sock", "./a", "/run/teesql/"] {
            let error = socket(wrong).unwrap_err();
            assert!(error.starts_with("expected auto, off"), "{wrong}: {error}");
        }
        let long = format!("/{}", "x".repeat(MAX_PATH));
        assert!(socket(&long).unwrap_err().contains("107 bytes"));
    }
}
