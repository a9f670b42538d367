//! Layer 8: the commands that run once. Nothing below imports this layer.

pub mod ca;
#[cfg(feature = "mock")]
pub mod dev;
pub mod forward;
pub mod manifest;
pub mod output;
pub mod password;
pub mod provision;
pub mod secret;
mod subprocess;
pub mod verify;
