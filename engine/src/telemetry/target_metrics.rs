//! The counters of a forwarder's attempts to connect to its servers.
//!
//! Servers are labelled by their position in the configuration: names come from the operator's configuration, and are not a
//! closed list.

use std::collections::HashMap;

use metrics::Counter;

use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::metrics::Metrics;

/// The counters, which all shards share: they change once for each connection.
pub(crate) struct TargetMetrics {
    servers: Vec<Attempts>,
    failures: HashMap<&'static str, Counter>,
}

struct Attempts {
    connected: Counter,
    failed: Counter,
}

impl TargetMetrics {
    /// Registers the counters of `servers` servers.
    pub(crate) fn new(metrics: &Metrics, servers: usize) -> Self {
        let attempts = |position: usize| {
            let position = position.to_string();
            let counter = |outcome| {
                let labels = [("position", position.as_str()), ("outcome", outcome)];
                metrics.counter("teesql_forward_target_attempts_total", &labels)
            };
            Attempts {
                connected: counter("connected"),
                failed: counter("failed"),
            }
        };
        let failures = metrics.reasons().map(|reason| {
            let labels = [("reason", reason)];
            let counter = metrics.counter("teesql_forward_target_failures_total", &labels);
            (reason, counter)
        });
        Self {
            servers: (1..=servers).map(attempts).collect(),
            failures: failures.collect(),
        }
    }

    /// A session or a CancelRequest was connected to the server with this index.
    pub(crate) fn connected(&self, server: usize) {
        if let Some(attempts) = self.servers.get(server) {
            attempts.connected.increment(1);
        }
    }

    /// The server with this index could not be used.
    pub(crate) fn failed(&self, server: usize, reason: &CloseReason) {
        if let Some(attempts) = self.servers.get(server) {
            attempts.failed.increment(1);
        }
        if let Some(counter) = self.failures.get(reason.code()) {
            counter.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_counted_by_position() {
        let metrics = Metrics::for_forwarder().unwrap();
        let target_metrics = TargetMetrics::new(&metrics, 2);
        target_metrics.failed(0, &CloseReason::ServerHungUp);
        target_metrics.connected(1);
        // There is none.
        target_metrics.connected(2);
        let text = metrics.render();
        for series in [
            r#"attempts_total{position="1",outcome="failed"} 1"#,
            r#"attempts_total{position="1",outcome="connected"} 0"#,
            r#"attempts_total{position="2",outcome="connected"} 1"#,
            r#"failures_total{reason="server_hung_up"} 1"#,
            r#"failures_total{reason="manifest_expired"} 0"#,
        ] {
            assert!(
                text.contains(&format!("teesql_forward_target_{series}")),
                "{series}"
            );
        }
        assert!(!text.contains(r#"position="3""#));
    }
}
