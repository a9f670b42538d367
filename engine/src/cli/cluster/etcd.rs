//! etcd's environment file, as Debian's package reads it from `/etc/default/etcd`, and the script that starts etcd.
//!
//! A member that starts without data has to know whether there is an etcd already. The script asks the other members, so
//! that all of them have the same configuration and nothing has to be changed for a new member or a lost disk.

use std::fmt::Write as _;

use super::{Member, Ports};

/// The script. It is the same everywhere: what differs is in the environment file.
pub(super) const SCRIPT: &str = include_str!("etcd.sh");

/// The environment file.
pub(super) fn environment(member: &Member<'_>) -> String {
    let own = member.cluster.own;
    let founders = member.options.founders.unwrap_or(usize::MAX);
    // While one member is recovered, the others wait for it: two of them would found a second cluster of etcd.
    let is_founder = own < founders && member.options.recover.is_none();
    let names = member.cluster.members.iter().map(|member| member.name);
    let peers: Vec<_> = names
        .zip(&member.etcd_peer.members)
        .enumerate()
        .filter(|(position, _)| !is_founder || *position < founders)
        .map(|(_, (name, address))| format!("{name}=http://{address}"))
        .collect();
    let others = |ports: &Ports| {
        let others = ports.members.iter().enumerate();
        let others = others.filter(|(position, _)| *position != own);
        let others: Vec<_> = others
            .map(|(_, address)| format!("http://{address}"))
            .collect();
        format!("'{}'", others.join(" "))
    };
    let state = if is_founder { "new" } else { "existing" };
    let http = |address: &str| format!("http://{address}");
    let variables = [
        ("ETCD_NAME", member.name().to_owned()),
        ("ETCD_DATA_DIR", member.options.etcd_dir.clone()),
        ("ETCD_LISTEN_CLIENT_URLS", http(&member.etcd_client.local)),
        ("ETCD_ADVERTISE_CLIENT_URLS", http(&member.etcd_client.own)),
        ("ETCD_LISTEN_PEER_URLS", http(&member.etcd_peer.local)),
        (
            "ETCD_INITIAL_ADVERTISE_PEER_URLS",
            http(&member.etcd_peer.own),
        ),
        ("ETCD_INITIAL_CLUSTER", peers.join(",")),
        ("ETCD_INITIAL_CLUSTER_STATE", state.to_owned()),
        ("ETCD_INITIAL_CLUSTER_TOKEN", member.cluster.name.clone()),
        // Patroni writes every few seconds; without it the history of those writes grows until etcd's quota stops it.
        ("ETCD_AUTO_COMPACTION_RETENTION", "1".to_owned()),
        // Milliseconds. etcd's defaults, 100 and 1000, are for a quiet local network: here two sidecars relay each
        // heartbeat, which costs both of them a wake-up, and the members share their cores and disks with Postgres.
        // etcd refuses an election timeout of less than five heartbeats. Reads and writes do not wait for the next
        // heartbeat: the leader sends entries, commits and the heartbeat that confirms a linearizable read at once.
        ("ETCD_HEARTBEAT_INTERVAL", "500".to_owned()),
        ("ETCD_ELECTION_TIMEOUT", "2500".to_owned()),
        // For etcd.sh.
        ("TEESQL_ETCD_OTHERS", others(&member.etcd_client)),
        ("TEESQL_ETCD_PEERS", others(&member.etcd_peer)),
        (
            "TEESQL_ETCD_RECOVER",
            format!(
                "'{}'",
                member.options.recover.as_deref().unwrap_or_default()
            ),
        ),
    ];
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# etcd of member {} of the cluster {}. http: the sidecar's links encrypt and attest.",
        member.name(),
        member.cluster.name
    );
    for (name, value) in variables {
        let _ = writeln!(text, "{name}={value}");
    }
    text
}
