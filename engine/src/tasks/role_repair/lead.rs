//! Whether this sidecar may set up roles: a reconciler that acts only while it is the leader, as in leader election.
//!
//! A Postgres that is not in recovery is not enough in a cluster. While Patroni founds one, its Postgres is not in recovery
//! either, and Patroni creates `replicator` and `rewind` itself: if another session does so at the same moment, one of the two
//! fails, and Patroni gives the new database up (`Failed to bootstrap cluster`). It takes the leader lock when it has finished.

use tokio::sync::watch;

/// Outside a cluster always, in one while this member leads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lead(Option<watch::Receiver<Option<u64>>>);

impl Lead {
    /// In a cluster, whose leadership this is.
    pub(crate) fn of(leadership: watch::Receiver<Option<u64>>) -> Self {
        Self(Some(leadership))
    }

    /// Whether roles may be set up now.
    pub(super) fn allows(&self) -> bool {
        let leadership = self.0.as_ref();
        leadership.is_none_or(|leadership| leadership.borrow().is_some())
    }

    /// Waits until this member begins or ceases to lead, also if that was before the call. Outside a cluster it waits forever.
    pub(super) async fn changed(&mut self) {
        if let Some(leadership) = &mut self.0
            && leadership.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn outside_a_cluster_it_allows_always_and_never_changes() {
        let mut lead = Lead::default();
        assert!(lead.allows());
        assert_eq!(lead.changed().now_or_never(), None);
    }

    #[test]
    fn only_a_leader_may_set_up_roles() {
        let leadership = watch::Sender::new(None);
        let mut lead = Lead::of(leadership.subscribe());
        assert!(!lead.allows());
        assert_eq!(lead.changed().now_or_never(), None);
        leadership.send_replace(Some(1));
        assert!(lead.allows());
        leadership.send_replace(None);
        assert!(!lead.allows());
    }

    /// The change may come while the roles are compared.
    #[test]
    fn a_change_is_not_missed_and_is_told_once() {
        let leadership = watch::Sender::new(None);
        let mut lead = Lead::of(leadership.subscribe());
        leadership.send_replace(Some(1));
        assert!(lead.allows());
        assert_eq!(lead.changed().now_or_never(), Some(()));
        assert_eq!(lead.changed().now_or_never(), None);
    }

    /// The end of the process, in which the watcher may be gone first, must not become a busy loop.
    #[test]
    fn without_the_watcher_it_waits() {
        let leadership = watch::Sender::new(Some(1));
        let mut lead = Lead::of(leadership.subscribe());
        drop(leadership);
        assert_eq!(lead.changed().now_or_never(), None);
    }
}
