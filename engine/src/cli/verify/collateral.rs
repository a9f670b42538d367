//! The collateral to verify quotes with, from a file or a PCCS.

use std::path::PathBuf;

use attest::collateral::{
    Collateral, CollateralError, CollateralKey, FetchError, FetchOptions, Fetcher, LoadError,
    Source, load_file,
};

use super::error::UsageError;

/// Where to get collateral.
pub(super) enum CollateralSource {
    /// A file, by its name.
    File(String, Box<Collateral>),
    Pccs(Source),
    None,
}

/// Why there is no collateral.
#[derive(Debug, thiserror::Error)]
pub(super) enum GetError {
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("it does not verify against the trusted root: {0}")]
    NotGenuine(CollateralError),
    #[error("cannot start an I/O runtime: {0}")]
    Runtime(std::io::Error),
    #[error("pccs is off, and --collateral is not set")]
    NoSource,
}

impl CollateralSource {
    pub(super) fn new(file: Option<PathBuf>, source: Option<Source>) -> Result<Self, UsageError> {
        let Some(file) = file else {
            return Ok(source.map_or(Self::None, Self::Pccs));
        };
        let name = file.display().to_string();
        match load_file(&file) {
            Ok(collateral) => Ok(Self::File(name, Box::new(collateral))),
            Err(LoadError::Io(error)) => Err(UsageError::no_input(format!(
                "{name}: cannot be read: {error}"
            ))),
            Err(error) => Err(UsageError::no_input(format!("{name}: {error}"))),
        }
    }

    /// The name for the report.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(name, _) => name.clone(),
            Self::Pccs(source) => source.to_string(),
            Self::None => "none".to_owned(),
        }
    }

    /// Gets collateral for `key` that verifies against `root`, as the gate would use it. That of a file
    /// may be for another platform or outdated, which the verifier reports.
    pub(super) fn get(
        &self,
        key: CollateralKey,
        root: &[u8],
        now: u64,
    ) -> Result<Collateral, GetError> {
        let collateral = match self {
            Self::File(_, collateral) => Collateral::clone(collateral),
            Self::Pccs(source) => fetch(source, key)?,
            Self::None => return Err(GetError::NoSource),
        };
        match collateral.check(root, now) {
            Ok(()) => Ok(collateral),
            Err(CollateralError::NotYetValid { .. } | CollateralError::Expired { .. }) => {
                Ok(collateral)
            }
            Err(error) => Err(GetError::NotGenuine(error)),
        }
    }

    /// Whether getting collateral makes a network request.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Pccs(_))
    }
}

fn fetch(source: &Source, key: CollateralKey) -> Result<Collateral, GetError> {
    let runtime = crate::app::runtime::new_current_thread().map_err(GetError::Runtime)?;
    let fetcher = Fetcher::new(source.clone(), &FetchOptions::default())?;
    Ok(runtime.block_on(fetcher.fetch(key))?)
}
