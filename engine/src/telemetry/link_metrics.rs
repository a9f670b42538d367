//! The metrics of links, by service: handles of one shard, registered once.
//!
//! Labels have values from closed lists only: what a peer sends as the name of a service is no label.

use std::collections::HashMap;
use std::rc::Rc;

use metrics::{Counter, Gauge};
use wire::link::ServiceName;

use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::link_info::{LinkDirection, LinkInfo};
use crate::telemetry::metrics::Metrics;

/// The bytes of the links to one service, as the member sees them that accepted the connection.
pub(crate) struct LinkBytes {
    /// From the side that has opened the connection.
    pub(crate) received: Counter,
    /// To that side.
    pub(crate) sent: Counter,
}

/// The metrics of links that one shard updates.
pub(crate) struct LinkMetrics {
    services: HashMap<(LinkDirection, ServiceName), ServiceMetrics>,
    refused: HashMap<(LinkDirection, &'static str), Counter>,
    ended: HashMap<(LinkDirection, &'static str), Counter>,
}

struct ServiceMetrics {
    open: Gauge,
    opened: Counter,
    bytes: Rc<LinkBytes>,
}

/// Creates every series with the value 0.
pub(crate) fn register_all(metrics: &Metrics, services: &[ServiceName], shards: usize) {
    for shard in 0..shards {
        drop(LinkMetrics::new(metrics, services, shard));
    }
}

impl LinkMetrics {
    pub(crate) fn new(metrics: &Metrics, services: &[ServiceName], shard: usize) -> Self {
        let shard = shard.to_string();
        let directions = || LinkDirection::ALL.into_iter();
        let by_service = directions().flat_map(|direction| {
            let metrics_of =
                |service: &ServiceName| ServiceMetrics::new(metrics, direction, service, &shard);
            let of_service =
                move |service: &ServiceName| ((direction, *service), metrics_of(service));
            services.iter().map(of_service).collect::<Vec<_>>()
        });
        let by_reason = |name: &'static str| {
            directions()
                .flat_map(|direction| {
                    let counter = |reason: &'static str| {
                        let labels = [("direction", direction.name()), ("reason", reason)];
                        ((direction, reason), metrics.counter(name, &labels))
                    };
                    metrics.reasons().map(counter).collect::<Vec<_>>()
                })
                .collect()
        };
        Self {
            services: by_service.collect(),
            refused: by_reason("teesql_links_refused_total"),
            ended: by_reason("teesql_links_ended_total"),
        }
    }

    /// A link is open. Returns the counters of its bytes.
    pub(crate) fn opened(&self, link: &LinkInfo) -> Option<Rc<LinkBytes>> {
        let of_service = self.service(link)?;
        of_service.open.increment(1.0);
        of_service.opened.increment(1);
        Some(Rc::clone(&of_service.bytes))
    }

    /// A link has ended, or was not opened.
    pub(crate) fn ended(&self, link: &LinkInfo, was_open: bool, close_reason: &CloseReason) {
        let reason = close_reason.metric_code();
        let by_reason = match was_open {
            true => &self.ended,
            false => &self.refused,
        };
        if let Some(counter) = by_reason.get(&(link.direction, reason)) {
            counter.increment(1);
        }
        if let Some(of_service) = self.service(link).filter(|_| was_open) {
            of_service.open.decrement(1.0);
        }
    }

    fn service(&self, link: &LinkInfo) -> Option<&ServiceMetrics> {
        self.services.get(&(link.direction, link.service?))
    }
}

impl ServiceMetrics {
    fn new(
        metrics: &Metrics,
        direction: LinkDirection,
        service: &ServiceName,
        shard: &str,
    ) -> Self {
        let labels = [
            ("direction", direction.name()),
            ("service", service.as_str()),
        ];
        let bytes = |flow| {
            let [direction, service] = labels;
            let labels = [direction, service, ("flow", flow), ("shard", shard)];
            metrics.counter("teesql_link_bytes_total", &labels)
        };
        Self {
            open: metrics.gauge("teesql_links", &labels),
            opened: metrics.counter("teesql_links_opened_total", &labels),
            bytes: Rc::new(LinkBytes {
                received: bytes("received"),
                sent: bytes("sent"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_link_counts_for_its_service_and_direction() {
        let metrics = Metrics::new().unwrap();
        let service: ServiceName = "etcd-peer".parse().unwrap();
        register_all(&metrics, &[service], 1);
        let links = LinkMetrics::new(&metrics, &[service], 0);
        let link = LinkInfo::opened(Arc::from("b"), service);
        let bytes = links.opened(&link).unwrap();
        bytes.sent.increment(7);
        let text = metrics.render();
        for series in [
            r#"teesql_links{direction="opened",service="etcd-peer"} 1"#,
            r#"teesql_links{direction="accepted",service="etcd-peer"} 0"#,
            r#"teesql_links_opened_total{direction="opened",service="etcd-peer"} 1"#,
            r#"teesql_link_bytes_total{direction="opened",service="etcd-peer",flow="sent",shard="0"} 7"#,
            r#"teesql_links_refused_total{direction="accepted",reason="link_not_a_member"} 0"#,
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
        links.ended(&link, true, &CloseReason::ClientClosed);
        links.ended(&LinkInfo::accepted(), false, &CloseReason::LoginTimeout);
        let text = metrics.render();
        for series in [
            r#"teesql_links{direction="opened",service="etcd-peer"} 0"#,
            r#"teesql_links_ended_total{direction="opened",reason="client_closed"} 1"#,
            r#"teesql_links_refused_total{direction="accepted",reason="login_timeout"} 1"#,
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
    }
}
