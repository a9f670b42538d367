//! The servers of a forwarder, and their order.

use super::*;
use crate::config::{Errors, ProgramEnvironment};
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

/// A program whose environment has these variables, and what it hides of them.
fn program(
    variables: &[(&str, &str)],
    hidden: &[&'static str],
    settings: &[(&str, &str)],
) -> Result<ForwarderConfig, Errors> {
    let value = |name: &str| {
        let found = variables.iter().find(|(own, _)| *own == name);
        found.map(|(_, value)| value.into())
    };
    let names = variables.iter().map(|(name, _)| (*name).to_owned());
    let environment = ProgramEnvironment {
        variable: &value,
        names: names.collect(),
        hidden,
    };
    let defaults = [("allow_simulator", "true"), ("drain_timeout", "2s")];
    let settings = settings.iter().copied();
    let layers = Layers::of_program(Scope::Forward, Some(environment), &defaults, settings);
    ForwarderConfig::from_layers(&layers)
}

#[test]
fn a_program_takes_precedence_over_its_environment() {
    let variables = [
        ("TEESQL_TARGET", "environment:1"),
        ("TEESQL_DRAIN_TIMEOUT", "7s"),
        ("TEESQL_CLIENT_CERT", "/dev/null"),
        ("TEESQL_CLIENT_KEY", "/dev/null"),
    ];
    let config = program(&variables, &[], &[]).unwrap();
    assert_eq!(hosts(&config), ["environment:1"]);
    assert_eq!(config.process.drain_timeout.as_secs(), 7);
    let files = IdentitySource::Files {
        cert: "/dev/null".into(),
        key: "/dev/null".into(),
    };
    assert_eq!(
        format!("{:?}", config.identity),
        format!("Source({files:?})")
    );
    let config = program(&variables, &[], &[("target", "own:1")]).unwrap();
    assert_eq!(hosts(&config), ["own:1"]);
    // What the settings of the program would not override alone.
    let config = program(&variables, &["target"], &[URL]).unwrap();
    assert_eq!(hosts(&config), ["a:5433", "b:7"]);
    let none = [("client_attestation", "false")];
    let errors = program(&variables, &[], &none).err().unwrap();
    assert!(
        errors.to_string().contains("client_cert is set"),
        "{errors}"
    );
    let config = program(&variables, &["client_cert", "client_key"], &none).unwrap();
    assert_eq!(format!("{:?}", config.identity), "None");
    let config = program(&[], &[], &[URL]).unwrap();
    assert_eq!(config.process.drain_timeout.as_secs(), 2);
}
