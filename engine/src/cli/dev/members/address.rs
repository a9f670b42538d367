//! Names and addresses within the namespaces of `dev --members`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The bridge, where the inner process and the forwarder are.
pub(super) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// The prefix length of the members' network.
pub(super) const PREFIX: u8 = 24;

/// The member's name: `a`, `b`, …
pub(super) fn name(position: usize) -> String {
    let letter = u8::try_from(position).unwrap_or(0).saturating_add(b'a');
    char::from(letter).to_string()
}

/// The member's address: 10.99.0.1, …
pub(super) fn ip(position: usize) -> Ipv4Addr {
    let [a, b, c, _] = BRIDGE.octets();
    let host = u8::try_from(position).unwrap_or(0).saturating_add(1);
    Ipv4Addr::new(a, b, c, host)
}

/// The port of every sidecar.
pub(super) const SIDECAR_PORT: u16 = 5433;

/// The port of every sidecar's HTTP server, and of the forwarder's on the bridge.
pub(super) const HTTP_PORT: u16 = 8080;

/// The HTTP server of the forwarder that follows the leader, on loopback in the network of the whole.
pub(super) const FOLLOWING_HTTP: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// `cluster_members` for `count` members.
pub(super) fn members(count: usize) -> String {
    let entry = |position| format!("{}={}:{SIDECAR_PORT}", name(position), ip(position));
    (0..count).map(entry).collect::<Vec<_>>().join(",")
}
