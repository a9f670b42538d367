//! Layer 8: the commands of the two programs. Nothing below imports this layer.

pub mod audit;
pub mod ca;
pub mod check;
pub mod cluster;
pub mod dev;
mod escape;
pub mod forward;
pub mod hardening;
pub mod manifest;
pub mod manifest_address;
pub mod output;
pub mod password;
pub mod program;
pub mod provision;
pub mod secret;
pub mod serve;
pub mod sessions;
mod subprocess;
pub mod verify;
