//! The current view of the cluster, shared by all threads: shards read an atomically swapped snapshot, tasks wait for
//! its changes.
//!
//! Only the watcher publishes. Nothing here may block a shard.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use metrics::Gauge;
use tokio::sync::{Notify, watch};

use super::carried::CarriedKeys;
use super::view::ClusterView;
use crate::config::ClusterConfig;
use crate::telemetry::metrics::Metrics;

/// The view and what is counted beside it.
pub(crate) struct ClusterState {
    pub(crate) config: ClusterConfig,
    view: ArcSwap<ClusterView>,
    changes: watch::Sender<Arc<ClusterView>>,
    leadership: watch::Sender<Option<u64>>,
    check: Notify,
    /// The cancel keys of sessions that were carried to the leader.
    pub(crate) carried_keys: CarriedKeys,
    /// Sessions that were carried to the leader.
    pub(crate) carried_sessions: Gauge,
    /// Logins that wait for a leader.
    pub(crate) waiting_logins: Gauge,
}

impl ClusterState {
    /// The state before the first answer. `max_sessions` is that of the process.
    pub(crate) fn new(config: &ClusterConfig, max_sessions: usize, metrics: &Metrics) -> Arc<Self> {
        let now = Instant::now();
        let validity = config.role.fence_after;
        let view = Arc::new(ClusterView::unknown(config.members.len(), now, validity));
        Arc::new(Self {
            config: config.clone(),
            view: ArcSwap::new(Arc::clone(&view)),
            changes: watch::Sender::new(view),
            leadership: watch::Sender::new(None),
            check: Notify::new(),
            carried_keys: CarriedKeys::new(max_sessions),
            carried_sessions: metrics.gauge("teesql_cluster_carried_sessions", &[]),
            waiting_logins: metrics.gauge("teesql_cluster_waiting_logins", &[]),
        })
    }

    /// The current view.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        self.view.load_full()
    }

    /// Every view, for tasks that wait for changes.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "the tasks that follow the leader are added separately"
        )
    )]
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.changes.subscribe()
    }

    /// `Some(timeline)` while this member holds the leader lock and its Postgres takes writes.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "the publisher of the manifest is added separately"
        )
    )]
    pub(crate) fn leadership(&self) -> watch::Receiver<Option<u64>> {
        self.leadership.subscribe()
    }

    /// Makes a view the current one.
    pub(crate) fn publish(&self, view: ClusterView) {
        let leads = view.leader == Some(self.config.own);
        let timeline = view.timeline.filter(|_| leads);
        let view = Arc::new(view);
        self.view.store(Arc::clone(&view));
        self.changes.send_replace(view);
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
        Some(&member.name)
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
            name: name.to_owned(),
            host: name.to_owned(),
            port: 5433,
        };
        let config = ClusterConfig {
            name: "orders".to_owned(),
            members: vec![member("a"), member("b")],
            own: 0,
            services: Vec::new(),
            role: RoleConfig {
                patroni: None,
                writes_on_standby: WritesOnStandby::Leader,
                leader_wait: Duration::ZERO,
                fence_after: Duration::from_secs(5),
            },
        };
        ClusterState::new(&config, 10, &Metrics::new().unwrap())
    }

    #[test]
    fn leadership_is_that_of_this_member_and_has_its_timeline() {
        let state = state();
        let (views, mut leadership) = (state.subscribe(), state.leadership());
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
        assert_eq!(views.borrow().leader, Some(1));
        assert_eq!(state.view().leader, Some(1));
    }
}
