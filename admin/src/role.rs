//! The role of a cluster's member behind `/primary`, `/replica` and the like, with the names and statuses of Patroni's
//! REST API, so that its recipes for load balancers work here.
//!
//! The answer is about the whole member: its Postgres and this process. Where anything is not known, it is 503.

use serde_json::Value;

/// What is asked of a member. [Patroni's documentation, "REST API", "Health check endpoints"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleCheck {
    /// `/primary`, `/master`, `/read-write`: it leads and takes writes.
    Primary,
    /// `/leader`: it holds the leader lock, also of a standby cluster.
    Leader,
    /// `/standby-leader`: it leads a standby cluster.
    StandbyLeader,
    /// `/replica`: it follows, and is not further behind than `?lag=` says.
    Replica,
    /// `/read-only`: it leads, or as [`Self::Replica`].
    ReadOnly,
}

impl RoleCheck {
    pub(crate) fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "/primary" | "/master" | "/read-write" => Self::Primary,
            "/leader" => Self::Leader,
            "/standby-leader" | "/standby_leader" => Self::StandbyLeader,
            "/replica" => Self::Replica,
            "/read-only" => Self::ReadOnly,
            _ => return None,
        })
    }
}

/// The role of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds the leader lock, and its Postgres takes writes.
    Primary,
    /// It follows another member.
    Replica,
    /// It leads a standby cluster.
    StandbyLeader,
    /// None of these, or not known.
    Other,
}

/// The state of the cluster.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The role of this member.
    pub role: Role,
    /// How many bytes of WAL it is behind; `None` if that is not known.
    pub lag: Option<u64>,
    /// The answer to `/cluster`.
    pub document: Value,
}

impl ClusterStatus {
    /// Whether this member is what `check` asks for. `query` is that of the request.
    ///
    /// # Errors
    /// The value of `lag` is no size.
    pub(crate) fn passes(&self, check: RoleCheck, query: Option<&str>) -> Result<bool, LagError> {
        let max_lag = max_lag(query)?;
        let follows = self.role == Role::Replica
            && max_lag.is_none_or(|max| self.lag.is_some_and(|lag| lag <= max));
        let leads = matches!(self.role, Role::Primary | Role::StandbyLeader);
        Ok(match check {
            RoleCheck::Primary => self.role == Role::Primary,
            RoleCheck::Leader => leads,
            RoleCheck::StandbyLeader => self.role == Role::StandbyLeader,
            RoleCheck::Replica => follows,
            RoleCheck::ReadOnly => leads || follows,
        })
    }
}

/// The value of `lag` is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lag: expected a number of bytes, or one with B, kB, MB, GB or TB, e.g. 16MB")]
pub(crate) struct LagError;

/// The value of the first `lag` in a query, in bytes. Other parameters are ignored, as by Patroni. A value that is no
/// size is an error here: Patroni takes it for no limit.
fn max_lag(query: Option<&str>) -> Result<Option<u64>, LagError> {
    let mut parameters = query.unwrap_or_default().split('&');
    let lag = parameters.find_map(|parameter| parameter.strip_prefix("lag="));
    lag.map(size).transpose()
}

/// A size as Patroni and PostgreSQL write it: units are powers of 1024. [Patroni's `parse_int`]
fn size(text: &str) -> Result<u64, LagError> {
    let text = text.trim_matches(['+', ' ']);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or(LagError)?;
    let shift = match unit {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return Err(LagError),
    };
    let number: u64 = number.parse().map_err(|_| LagError)?;
    number.checked_mul(1 << shift).ok_or(LagError)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: Role, lag: Option<u64>) -> ClusterStatus {
        ClusterStatus {
            role,
            lag,
            document: Value::Null,
        }
    }

    #[test]
    fn checks_pass_for_the_roles_that_patroni_says() {
        use RoleCheck::{Leader, Primary, ReadOnly, Replica, StandbyLeader};
        let checks = [Primary, Leader, StandbyLeader, Replica, ReadOnly];
        for (role, expected) in [
            (Role::Primary, [true, true, false, false, true]),
            (Role::Replica, [false, false, false, true, true]),
            (Role::StandbyLeader, [false, true, true, false, true]),
            (Role::Other, [false; 5]),
        ] {
            let status = status(role, None);
            let passes = checks.map(|check| status.passes(check, None).unwrap());
            assert_eq!(passes, expected, "{role:?}");
        }
    }

    #[test]
    fn a_replica_is_not_further_behind_than_asked() {
        let passes =
            |lag, query| status(Role::Replica, lag).passes(RoleCheck::Replica, Some(query));
        assert_eq!(passes(Some(16 << 20), "lag=16MB"), Ok(true));
        assert_eq!(passes(Some((16 << 20) + 1), "lag=16MB"), Ok(false));
        assert_eq!(passes(Some(10), "tag_x=1&lag=10"), Ok(true));
        assert_eq!(passes(Some(10), "lag=9B"), Ok(false));
        assert_eq!(passes(None, "lag=1TB"), Ok(false));
        assert_eq!(passes(None, "other"), Ok(true));
        let primary = status(Role::Primary, None);
        assert_eq!(primary.passes(RoleCheck::ReadOnly, Some("lag=0")), Ok(true));
    }

    #[test]
    fn sizes_are_those_of_postgres() {
        for (text, bytes) in [
            ("0", 0),
            ("7B", 7),
            ("3kB", 3 << 10),
            ("2GB", 2 << 30),
            ("1TB", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "MB",
            "1mb",
            "1 x",
            "-1",
            "1.5MB",
            "99999999999999999999",
            "99999999TB",
        ] {
            assert_eq!(size(wrong), Err(LagError), "{wrong}");
        }
    }
}
