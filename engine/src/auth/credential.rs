//! A role's password for Postgres, with an identifier for caches of derived keys.

use std::sync::atomic::{AtomicU64, Ordering};

use wire::scram::Password;

/// A role's password for Postgres.
#[derive(Debug)]
pub(crate) struct Credential {
    pub(crate) password: Password,
    /// Unique in this process.
    pub(crate) id: u64,
}

impl Credential {
    pub(crate) fn new(password: Password) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { password, id }
    }
}
