//! The servers of a forwarder, and their order.

use super::*;
use crate::config::Errors;
use crate::io::target::{HostOrder, TargetSpec};

fn read(settings: &[(&str, &str)]) -> Result<ForwarderConfig, Errors> {
    let common = [("allow_simulator", "true")].into_iter();
    ForwarderConfig::from_settings(common.chain(settings.iter().copied()))
}

fn config(settings: &[(&str, &str)]) -> ForwarderConfig {
    read(settings).unwrap_or_else(|errors| panic!("{settings:?}: {errors}"))
}

fn hosts(config: &ForwarderConfig) -> Vec<String> {
    let host = |spec: &TargetSpec| match spec {
        TargetSpec::Fixed { host, port } => format!("{host}:{port}"),
        TargetSpec::Cluster { domain, .. } => domain.clone(),
    };
    config.targets.iter().map(host).collect()
}

const CLUSTER: [(&str, &str); 2] = [
    ("cluster", "orders.example"),
    (
        "manifest_signer",
        "0xbd32b609057a1a4569558a571d535c8f1212b097",
    ),
];
const URL: (&str, &str) = (
    "database_url",
    "postgresql://u@a,b:7/d?load_balance_hosts=random",
);

#[test]
fn the_order_of_hosts_belongs_to_the_hosts() {
    let of_url = config(&[URL]);
    assert_eq!(hosts(&of_url), ["a:5433", "b:7"]);
    assert_eq!(of_url.host_order, HostOrder::Random);
    let set = config(&[URL, ("load_balance_hosts", "disable")]);
    assert_eq!(set.host_order, HostOrder::Given);
    // The hosts of the URI are not used, and neither is their order.
    let targets = config(&[URL, ("target", "c:1,d:2")]);
    assert_eq!(hosts(&targets), ["c:1", "d:2"]);
    assert_eq!(targets.host_order, HostOrder::Given);
    let random = config(&[("target", "c:1"), ("load_balance_hosts", "random")]);
    assert_eq!(random.host_order, HostOrder::Random);
    let unknown = ("database_url", "postgresql://a/?load_balance_hosts=on");
    let errors = read(&[unknown]).err().unwrap().to_string();
    assert!(errors.contains("must be disable or random"), "{errors}");
}

#[test]
fn only_a_cluster_can_be_followed() {
    let follow = ("follow", "true");
    let [cluster, signer] = CLUSTER;
    assert!(config(&[cluster, signer, follow]).follow);
    assert!(!config(&CLUSTER).follow);
    for servers in [("target", "a:1"), ("target", "a:1,b:2"), URL] {
        let errors = read(&[servers, follow]).err().unwrap();
        assert_eq!(errors.0.len(), 1, "{errors}");
        assert!(errors.0[0].starts_with("follow: "), "{errors}");
    }
    let both = read(&[cluster, signer, ("target", "a:1")]).err().unwrap();
    assert_eq!(both.0, ["target and cluster are both set"]);
}
