//! The gauges and counters of the role of this member.

use metrics::{Counter, Gauge};

use crate::cluster::view::{ClusterView, FenceCause, MemberRole, WatchError};
use crate::telemetry::metrics::Metrics;

/// The gauges and counters of the role.
pub(crate) struct RoleMetrics {
    /// In the order of [`MemberRole::ALL`].
    roles: [Gauge; 5],
    /// In the order of [`WatchError::ALL`].
    errors: [Counter; 16],
    /// In the order of [`FenceCause::ALL`].
    fences: [Counter; 3],
    timeline: Gauge,
    lag_bytes: Gauge,
    lag_seconds: Gauge,
    fenced: Gauge,
    has_leader: Gauge,
}

impl RoleMetrics {
    /// Creates all series.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let gauge = |name| metrics.gauge(name, &[]);
        Self {
            roles: MemberRole::ALL
                .map(|role| metrics.gauge("teesql_cluster_role", &[("role", role.name())])),
            errors: WatchError::ALL.map(|error| {
                metrics.counter(
                    "teesql_cluster_watch_errors_total",
                    &[("reason", error.code())],
                )
            }),
            fences: FenceCause::ALL.map(|cause| {
                metrics.counter("teesql_cluster_fences_total", &[("cause", cause.code())])
            }),
            timeline: gauge("teesql_cluster_timeline"),
            lag_bytes: gauge("teesql_cluster_lag_bytes"),
            lag_seconds: gauge("teesql_cluster_lag_seconds"),
            fenced: gauge("teesql_cluster_fenced"),
            has_leader: gauge("teesql_cluster_has_leader"),
        }
    }

    pub(super) fn set(&self, view: &ClusterView, own: usize) {
        let number = |value: Option<u64>| value.map_or(f64::NAN, |value| value as f64);
        let flag = |is: bool| f64::from(u8::from(is));
        for (role, gauge) in MemberRole::ALL.iter().zip(&self.roles) {
            gauge.set(flag(*role == view.role));
        }
        let leads = view.leader == Some(own);
        self.timeline.set(number(view.timeline));
        self.lag_bytes
            .set(number(view.lag.bytes.or(leads.then_some(0))));
        self.lag_seconds
            .set(number(view.lag.seconds.or(leads.then_some(0))));
        self.fenced.set(flag(view.fenced.is_some()));
        self.has_leader.set(flag(view.leader.is_some()));
    }

    pub(super) fn count_error(&self, error: WatchError) {
        let position = WatchError::ALL.iter().position(|known| *known == error);
        if let Some(counter) = position.and_then(|position| self.errors.get(position)) {
            counter.increment(1);
        }
    }

    pub(super) fn count_fence(&self, cause: FenceCause) {
        let position = FenceCause::ALL.iter().position(|known| *known == cause);
        if let Some(counter) = position.and_then(|position| self.fences.get(position)) {
            counter.increment(1);
        }
    }
}
