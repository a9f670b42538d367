//! Layer 5: background tasks of the control thread.

pub(crate) mod certificate_renewal;
pub(crate) mod collateral_refresh;
pub(crate) mod discovery;
pub(crate) mod upstream_probe;
pub(crate) mod upstream_version;
