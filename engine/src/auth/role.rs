//! The three roles that clients may log in as.

/// A role of the cluster. `teesql_read` and `teesql_readwrite` authenticate with the cluster secrets,
/// `postgres` with the superuser's own password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Read,
    ReadWrite,
    Superuser,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::ReadWrite, Self::Superuser];

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "teesql_read" => Some(Role::Read),
            "teesql_readwrite" => Some(Role::ReadWrite),
            "postgres" => Some(Role::Superuser),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Read => "teesql_read",
            Role::ReadWrite => "teesql_readwrite",
            Role::Superuser => "postgres",
        }
    }
}
