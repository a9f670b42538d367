//! The rate limit of log lines about links that were not opened: one line for each kind in each interval.
//!
//! While a member is down, its neighbours' services try to reach it many times a second, for days. The kinds are
//! from closed lists (member, service, reason), so that a peer cannot make the map grow.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use wire::link::ServiceName;

use crate::telemetry::line_limit::LineLimit;
use crate::telemetry::link_info::{LinkDirection, LinkInfo};

type Kind = (
    LinkDirection,
    Option<Arc<str>>,
    Option<ServiceName>,
    &'static str,
);

/// The lines of one shard.
#[derive(Default)]
pub(super) struct LinkLog(RefCell<HashMap<Kind, LineLimit>>);

impl LinkLog {
    /// Whether a line is due about a link that was not opened for `reason`. Gives the number of lines that were
    /// left out since the last one.
    pub(super) fn take(&self, link: &LinkInfo, reason: &'static str, now: Instant) -> Option<u64> {
        let kind = (link.direction, link.member.clone(), link.service, reason);
        self.0.borrow_mut().entry(kind).or_default().take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::line_limit::INTERVAL;

    #[test]
    fn each_failure_has_one_line_in_an_interval() {
        let (log, start) = (LinkLog::default(), Instant::now());
        let service: ServiceName = "postgres".parse().unwrap();
        let link = |member: &str| LinkInfo::opened(member.into(), service);
        let take = |member, reason, at| log.take(&link(member), reason, start + at);
        let soon = Duration::from_secs(1);
        assert_eq!(take("b", "server_unreachable", Duration::ZERO), Some(0));
        assert_eq!(take("b", "server_unreachable", soon), None);
        assert_eq!(take("b", "server_unreachable", soon), None);
        // Other members, and other reasons, have separate lines.
        assert_eq!(take("c", "server_unreachable", soon), Some(0));
        assert_eq!(take("b", "link_not_a_member", soon), Some(0));
        assert_eq!(take("b", "server_unreachable", INTERVAL), Some(2));
    }
}
