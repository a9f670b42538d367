//! Where to look for the guest agent: a list of addresses, of which the first that exists is used.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::address::AgentAddress;
use super::error::AgentError;

/// dstack's paths of the agent's socket, newest first.
pub const STANDARD_SOCKETS: [&str; 4] = [
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
];

/// The addresses at which to look for the agent, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAddresses(Vec<AgentAddress>);

impl AgentAddresses {
    /// The four sockets that dstack uses.
    #[must_use]
    pub fn standard() -> Self {
        Self::sockets(STANDARD_SOCKETS)
    }

    /// One configured address.
    #[must_use]
    pub fn only(address: AgentAddress) -> Self {
        Self(vec![address])
    }

    /// The given sockets.
    #[must_use]
    pub fn sockets(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let paths = paths.into_iter().map(Into::into);
        Self(paths.map(AgentAddress::Unix).collect())
    }

    /// All addresses.
    pub fn candidates(&self) -> impl Iterator<Item = &AgentAddress> {
        self.0.iter()
    }

    /// Finds the first address where there is a socket now; a URL is always taken. Reads the file system,
    /// which takes microseconds, and does not connect.
    ///
    /// # Errors
    /// [`AgentError::NotFound`]. [`AgentError::Forbidden`] if no socket is visible, and this process may
    /// not search the directory of one.
    pub fn find(&self) -> Result<AgentAddress, AgentError> {
        let mut tried = Vec::new();
        let mut forbidden = None;
        for address in &self.0 {
            let AgentAddress::Unix(path) = address else {
                return Ok(address.clone());
            };
            match is_socket(path) {
                Ok(true) => return Ok(address.clone()),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    forbidden = forbidden.or(Some(address.clone()));
                }
                Ok(false) | Err(_) => {}
            }
            tried.push(path.clone());
        }
        Err(match forbidden {
            Some(address) => AgentError::Forbidden { address },
            None => AgentError::NotFound { tried },
        })
    }
}

fn is_socket(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.file_type().is_socket())
}
