//! Where the collateral comes from: a file, or a PCCS.

use std::path::PathBuf;

use attest::collateral::{
    Collateral, CollateralError, CollateralKey, FetchError, FetchOptions, Fetcher, LoadError,
    Source, load_file,
};

use super::Mistake;

/// Where from, and how it is named.
pub(super) enum Origin {
    File(String, Box<Collateral>),
    Pccs(Source),
    Nowhere,
}

/// Why there is none to judge with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lack {
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("it is not genuine under the trusted root: {0}")]
    NotGenuine(CollateralError),
    #[error("a runtime for the network cannot be set up: {0}")]
    Runtime(std::io::Error),
    #[error("pccs is off, and no collateral is given")]
    Nowhere,
}

impl Origin {
    pub(super) fn new(file: Option<PathBuf>, source: Option<Source>) -> Result<Self, Mistake> {
        let Some(file) = file else {
            return Ok(source.map_or(Self::Nowhere, Self::Pccs));
        };
        let name = file.display().to_string();
        match load_file(&file) {
            Ok(collateral) => Ok(Self::File(name, Box::new(collateral))),
            Err(LoadError::Io(error)) => Err(Mistake::no_input(format!(
                "{name}: cannot be read: {error}"
            ))),
            Err(error) => Err(Mistake::no_input(format!("{name}: {error}"))),
        }
    }

    /// As the report names it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(name, _) => name.clone(),
            Self::Pccs(source) => source.to_string(),
            Self::Nowhere => "none".to_owned(),
        }
    }

    /// Collateral for `key` that is genuine under `root`: what the gate would
    /// keep. Of a file, it may be for another platform, or out of date: the
    /// verifier has words for these.
    pub(super) fn get(
        &self,
        key: CollateralKey,
        root: &[u8],
        now: u64,
    ) -> Result<Collateral, Lack> {
        let collateral = match self {
            Self::File(_, collateral) => Collateral::clone(collateral),
            Self::Pccs(source) => fetch(source, key)?,
            Self::Nowhere => return Err(Lack::Nowhere),
        };
        match collateral.check(root, now) {
            Ok(()) => Ok(collateral),
            Err(CollateralError::NotYetValid { .. } | CollateralError::Expired { .. }) => {
                Ok(collateral)
            }
            Err(error) => Err(Lack::NotGenuine(error)),
        }
    }

    /// Whether a network is asked, and so only for platforms of the root.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Pccs(_))
    }
}

fn fetch(source: &Source, key: CollateralKey) -> Result<Collateral, Lack> {
    let runtime = crate::app::runtime::of_this_thread().map_err(Lack::Runtime)?;
    let fetcher = Fetcher::new(source.clone(), &FetchOptions::default())?;
    Ok(runtime.block_on(fetcher.fetch(key))?)
}
