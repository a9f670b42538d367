//! The current view of the cluster, shared by all threads: shards and tasks read an atomically swapped
//! snapshot, and the publisher of the manifest waits for changes of the leadership.
//!
//! Only the watcher publishes. Nothing here may block a shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use metrics::Gauge;
use tokio::sync::{Notify, watch};

use super::carried::CarriedKeys;
use super::member_names::MemberNames;
use super::view::ClusterView;
use crate::config::ClusterConfig;
use crate::telemetry::metrics::Metrics;

/// The view and what is counted beside it.
pub(crate) struct ClusterState {
    pub(crate) config: ClusterConfig,
    view: ArcSwap<ClusterView>,
    leadership: watch::Sender<Option<u64>>,
    check: Notify,
    /// The cancel keys of sessions that were carried to the leader.
    pub(crate) carried_keys: CarriedKeys,
    /// Sessions that were carried to the leader.
    pub(crate) carried_sessions: Gauge,
    /// Logins that wait for a leader.
    pub(crate) waiting_logins: Gauge,
    /// Which VM has the name of which member.
    pub(crate) member_names: Arc<MemberNames>,
    /// The links that this member has open to each member.
    open_links: Box<[AtomicUsize]>,
}

/// Counts an open link until it is dropped.
pub(crate) struct OpenLink<'a>(&'a AtomicUsize);

impl Drop for OpenLink<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ClusterState {
    /// The state before the first answer. `max_sessions` is that of the process.
    pub(crate) fn new(config: &ClusterConfig, max_sessions: usize, metrics: &Metrics) -> Arc<Self> {
        let now = Instant::now();
        let validity = config.role.fence_after;
        let view = ClusterView::unknown(config.members.len(), now, validity);
        Arc::new(Self {
            config: config.clone(),
            view: ArcSwap::from_pointee(view),
            leadership: watch::Sender::new(None),
            check: Notify::new(),
            carried_keys: CarriedKeys::new(max_sessions),
            carried_sessions: metrics.gauge("teesql_cluster_carried_sessions", &[]),
            waiting_logins: metrics.gauge("teesql_cluster_waiting_logins", &[]),
            member_names: MemberNames::new(
                config.own_member().name,
                config.members.iter().map(|member| member.name),
            ),
            open_links: config.members.iter().map(|_| AtomicUsize::new(0)).collect(),
        })
    }

    /// Counts a link to the member at this position, which is open until the guard is dropped.
    pub(crate) fn link_opened(&self, member: usize) -> Option<OpenLink<'_>> {
        let count = self.open_links.get(member)?;
        count.fetch_add(1, Ordering::Relaxed);
        Some(OpenLink(count))
    }

    /// The number of links that this member has open to the member at this position; `None` for itself.
    pub(crate) fn open_links_to(&self, member: usize) -> Option<usize> {
        let others = self
            .open_links
            .get(member)
            .filter(|_| member != self.config.own);
        others.map(|count| count.load(Ordering::Relaxed))
    }

    /// The current view.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        self.view.load_full()
    }

    /// `Some(timeline)` while this member holds the leader lock and its Postgres takes writes.
    pub(crate) fn leadership(&self) -> watch::Receiver<Option<u64>> {
        self.leadership.subscribe()
    }

    /// Makes a view the current one.
    pub(crate) fn publish(&self, view: ClusterView) {
        let leads = view.leader == Some(self.config.own);
        let timeline = view.timeline.filter(|_| leads);
        self.view.store(Arc::new(view));
        self.leadership.send_if_modified(|known| {
            let before = std::mem::replace(known, timeline);
            before != timeline
        });
    }

    /// Asks the watcher to look again soon, because a login to the leader failed.
    pub(crate) fn request_check(&self) {
        self.check.notify_one();
    }

    /// Waits for a call of [`Self::request_check`] since the last wait.
    pub(crate) async fn check_requested(&self) {
        self.check.notified().await;
    }

    /// The name of the member at this position.
    pub(crate) fn name_of(&self, member: usize) -> Option<&str> {
        let member = self.config.members.get(member)?;
        Some(member.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::view::MemberRole;
    use crate::config::{Member, RoleConfig, WritesOnStandby};

    fn state() -> Arc<ClusterState> {
        let member = |name: &str| Member {
            name: name.parse().unwrap(),
            host: name.to_owned(),
            port: 5433,
        };
        let config = ClusterConfig {
            name: "orders".to_owned(),
            members: vec![member("a"), member("b")],
            own: 0,
            services: Vec::new(),
            max_links: 1,
            role: RoleConfig {
                patroni: None,
                writes_on_standby: WritesOnStandby::Leader,
                leader_wait: Duration::ZERO,
                fence_after: Duration::from_secs(5),
                move_etcd_leader: false,
            },
        };
        ClusterState::new(&config, 10, &Metrics::new().unwrap())
    }

    #[test]
    fn links_are_counted_by_member_while_they_are_open() {
        let state = state();
        let open = [state.link_opened(1), state.link_opened(1)];
        assert_eq!(state.open_links_to(1), Some(2));
        drop(open);
        assert_eq!(state.open_links_to(1), Some(0));
        assert_eq!(state.open_links_to(0), None, "this member itself");
        assert!(state.link_opened(2).is_none());
    }

    #[test]
    fn leadership_is_that_of_this_member_and_has_its_timeline() {
        let state = state();
        let mut leadership = state.leadership();
        assert_eq!(*leadership.borrow_and_update(), None);
        let view = |leader, timeline| ClusterView {
            role: MemberRole::Leader,
            leader,
            timeline,
            ..ClusterView::unknown(2, Instant::now(), Duration::from_secs(5))
        };
        state.publish(view(Some(0), Some(3)));
        assert_eq!(*leadership.borrow_and_update(), Some(3));
        state.publish(view(Some(0), Some(3)));
        assert!(!leadership.has_changed().unwrap());
        state.publish(view(Some(1), Some(3)));
        assert_eq!(*leadership.borrow_and_update(), None);
        assert_eq!(state.view().leader, Some(1));
    }
}
