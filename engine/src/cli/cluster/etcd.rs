//! etcd's environment file, as Debian's package reads it from `/etc/default/etcd`.

use std::fmt::Write as _;

use super::Member;

/// The file.
pub(super) fn environment(member: &Member<'_>) -> String {
    let names = member.cluster.members.iter().map(|member| member.name);
    let peers: Vec<_> = names
        .zip(&member.etcd_peer.members)
        .map(|(name, address)| format!("{name}=http://{address}"))
        .collect();
    let state = match member.options.join {
        true => "existing",
        false => "new",
    };
    let http = |address: &str| format!("http://{address}");
    let variables = [
        ("NAME", member.name().to_owned()),
        ("DATA_DIR", member.options.etcd_dir.clone()),
        ("LISTEN_CLIENT_URLS", http(&member.etcd_client.local)),
        ("ADVERTISE_CLIENT_URLS", http(&member.etcd_client.own)),
        ("LISTEN_PEER_URLS", http(&member.etcd_peer.local)),
        ("INITIAL_ADVERTISE_PEER_URLS", http(&member.etcd_peer.own)),
        ("INITIAL_CLUSTER", peers.join(",")),
        ("INITIAL_CLUSTER_STATE", state.to_owned()),
        ("INITIAL_CLUSTER_TOKEN", member.cluster.name.clone()),
        // Patroni writes every few seconds; without it the history of those writes grows until etcd's quota stops it.
        ("AUTO_COMPACTION_RETENTION", "1".to_owned()),
    ];
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# etcd of member {} of the cluster {}. http: the sidecar's links encrypt and attest.",
        member.name(),
        member.cluster.name
    );
    for (name, value) in variables {
        let _ = writeln!(text, "ETCD_{name}={value}");
    }
    text
}
