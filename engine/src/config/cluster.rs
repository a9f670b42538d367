//! The configuration of a cluster: its members, and the services that they reach of each other.
//!
//! Every member has a port on loopback for each service of each member: the service's first port plus the member's
//! position in the list. The ports are the same everywhere, so that addresses which Patroni and etcd store are true on
//! all members. The order of the members must therefore be the same on all of them.

mod role;
mod table;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};

use wire::link::{MAX_MEMBER_NAME, MemberName, ServiceName};

use super::reader::Reader;
use super::settings;
use super::values::{self, Parsed};

pub use role::{RoleConfig, WritesOnStandby};
pub(super) use role::{fence_after, patroni};
pub(super) use table::settings_of_table;

/// The most members that a cluster can have. Patroni and etcd work best with three to seven.
pub const MAX_MEMBERS: usize = 32;

/// The name of the service by which members reach each other's Postgres.
const POSTGRES: &str = "postgres";

/// The name of the service by which members reach each other's etcd as its clients.
const ETCD_CLIENT: &str = "etcd-client";

/// A cluster that this sidecar belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The name of the cluster, Patroni's `scope`.
    pub name: String,
    /// All members, in the order that gives the port numbers.
    pub members: Vec<Member>,
    /// The position of this member in `members`.
    pub own: usize,
    /// What members reach of each other.
    pub services: Vec<Service>,
    /// The most links that other members may have opened here, and the most that are opened here.
    pub max_links: usize,
    /// How the sidecar learns who leads, and what follows from it.
    pub role: RoleConfig,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Patroni's and etcd's `name`.
    pub name: MemberName,
    /// A host name or an IP address, where the other members reach this one's sidecar.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// A service that members reach of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The name in a link's request.
    pub name: ServiceName,
    /// The port of the service on 127.0.0.1 of the member that has it.
    pub port: u16,
    /// The port of the first member's service on 127.0.0.1 of every member.
    pub first_port: u16,
}

impl ClusterConfig {
    /// `Some(None)` if the sidecar belongs to no cluster.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Option<Self>> {
        let name = reader.read_optional(&settings::CLUSTER_NAME);
        let member = reader.read_optional(&settings::CLUSTER_MEMBER);
        let members = reader.read(&settings::CLUSTER_MEMBERS);
        let services = reader.read(&settings::CLUSTER_SERVICES);
        let max_links = reader.read(&settings::CLUSTER_LINKS);
        let role = RoleConfig::read(reader);
        let (name, member, members, services) = (name?, member?, members?, services?);
        let (max_links, role) = (max_links?, role?);
        let (name, member) = match (name, member) {
            (Some(name), Some(member)) => (name, member),
            (None, None) if members.is_empty() => return Some(None),
            (None, _) => {
                return reader.error("cluster_name: not set, but other settings of a cluster are");
            }
            (Some(_), None) => {
                return reader
                    .missing_counterpart(&settings::CLUSTER_NAME, &settings::CLUSTER_MEMBER);
            }
        };
        if let Some(mistake) = duplicate_member(&members) {
            return reader.error(format!("cluster_members: {mistake}"));
        }
        let Some(own) = members.iter().position(|other| other.name == member) else {
            return reader.error(format!(
                "cluster_member = {:?}: no member of cluster_members has this name",
                member.as_str()
            ));
        };
        let config = Self {
            name,
            members,
            own,
            services,
            max_links,
            role,
        };
        if let Some(mistake) = config.no_way_to_leader() {
            return reader.error(mistake);
        }
        match config.port_conflict(reader.listen()) {
            Some(conflict) => reader.error(format!("cluster_services: {conflict}")),
            None => Some(Some(config)),
        }
    }

    /// Refuses a cluster of several members if peers are not attested: every program on the network could open links to the databases.
    pub(super) fn check_attested(&self, reader: &mut Reader<'_>, attested: bool) -> Option<()> {
        if attested || self.members.len() == 1 {
            return Some(());
        }
        reader.error(
            "cluster_members: links between members are always attested, and this sidecar attests no peers: set \
             require_client_attestation = true, or remove the other members",
        )
    }

    /// This member.
    #[must_use]
    pub fn own_member(&self) -> &Member {
        #[expect(clippy::indexing_slicing, reason = "`read` checks it")]
        &self.members[self.own]
    }

    /// The position of the member with this name.
    #[must_use]
    pub fn position(&self, member: &MemberName) -> Option<usize> {
        self.members.iter().position(|other| other.name == *member)
    }

    /// The service with this name.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|service| service.name == *name)
    }

    /// Where the Postgres of the member at this position is, from every member. `None` if there is no such service.
    #[must_use]
    pub fn postgres_of(&self, member: usize) -> Option<SocketAddr> {
        Some(self.service_named(POSTGRES)?.address_of(member))
    }

    /// Where the etcd of the member at this position serves its clients, from every member. `None` if there is no such
    /// service.
    #[must_use]
    pub fn etcd_of(&self, member: usize) -> Option<SocketAddr> {
        Some(self.service_named(ETCD_CLIENT)?.address_of(member))
    }

    fn service_named(&self, name: &str) -> Option<&Service> {
        let mut services = self.services.iter();
        services.find(|service| service.name.as_str() == name)
    }

    /// Why logins cannot be carried to the leader, if they are to be.
    fn no_way_to_leader(&self) -> Option<&'static str> {
        let carries = self.role.writes_on_standby == WritesOnStandby::Leader;
        (carries && self.postgres_of(self.own).is_none()).then_some(
            "cluster_writes_on_standby = leader: cluster_services has no service postgres to reach the leader by",
        )
    }

    /// The ports of all services, each with where it is used.
    fn port_conflict(&self, listen: Option<SocketAddr>) -> Option<String> {
        let count = self.members.len();
        let mut taken: Vec<(u32, u32, String)> = Vec::new();
        if let Some(listen) = listen.filter(|listen| listen.port() != 0) {
            let port = u32::from(listen.port());
            taken.push((port, port, "listen".to_owned()));
        }
        for service in &self.services {
            let port = u32::from(service.port);
            taken.push((port, port, format!("the port of {}", service.name)));
        }
        for service in &self.services {
            let first = u32::from(service.first_port);
            let last = first + u32::try_from(count).unwrap_or(u32::MAX) - 1;
            if last > u32::from(u16::MAX) {
                return Some(format!(
                    "{}: the ports of {count} members from {first} on exceed 65535",
                    service.name
                ));
            }
            let range = format!("the ports {first} to {last} of {}", service.name);
            if let Some((.., other)) = taken
                .iter()
                .find(|(from, to, _)| first <= *to && *from <= last)
            {
                return Some(format!("{range} overlap with {other}"));
            }
            taken.push((first, last, range));
        }
        None
    }
}

impl Service {
    /// Where the service of the member at this position is, from every member.
    #[must_use]
    pub fn address_of(&self, member: usize) -> SocketAddr {
        // `ClusterConfig::read` checks the range.
        let offset = u16::try_from(member).unwrap_or_default();
        (Ipv4Addr::LOCALHOST, self.first_port.saturating_add(offset)).into()
    }

    /// Whether it is the members' Postgres.
    #[must_use]
    pub fn is_postgres(&self) -> bool {
        self.name.as_str() == POSTGRES
    }

    /// Where the service listens on the member that has it.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

fn duplicate_member(members: &[Member]) -> Option<String> {
    for (position, member) in members.iter().enumerate() {
        for earlier in members.iter().take(position) {
            if earlier.name == member.name {
                return Some(format!("two members are named {:?}", member.name.as_str()));
            }
            if (&earlier.host, earlier.port) == (&member.host, member.port) {
                return Some(format!(
                    "members {:?} and {:?} have the same address",
                    earlier.name.as_str(),
                    member.name.as_str()
                ));
            }
        }
    }
    None
}

/// The name of a cluster, which has the syntax of a member's.
pub(super) fn name(text: &str) -> Parsed<String> {
    member_name(text).map(|name| name.to_string())
}

/// The name of a member.
pub(super) fn member_name(text: &str) -> Parsed<MemberName> {
    text.parse().map_err(|_| {
        format!(
            "expected a name of 1 to {MAX_MEMBER_NAME} lower-case letters, digits and hyphens, not with a hyphen first \
             or last"
        )
    })
}

/// `NAME=HOST:PORT,…`
pub(super) fn members(text: &str) -> Parsed<Vec<Member>> {
    let members: Vec<_> = entries(text).map(member).collect::<Parsed<_>>()?;
    match members.len() {
        0..=MAX_MEMBERS => Ok(members),
        count => Err(format!("at most {MAX_MEMBERS} members, not {count}")),
    }
}

fn member(text: &str) -> Parsed<Member> {
    let (own, address) = text
        .split_once('=')
        .ok_or("expected NAME=HOST:PORT for each member")?;
    let (host, port) = values::target(address)?;
    Ok(Member {
        name: member_name(own)?,
        host,
        port,
    })
}

/// `NAME=PORT:FIRST_PORT,…`
pub(super) fn services(text: &str) -> Parsed<Vec<Service>> {
    let mut services: Vec<Service> = Vec::new();
    for entry in entries(text) {
        let service = service(entry)?;
        if services.iter().any(|other| other.name == service.name) {
            return Err(format!(
                "two services are named {:?}",
                service.name.as_str()
            ));
        }
        services.push(service);
    }
    Ok(services)
}

fn service(text: &str) -> Parsed<Service> {
    let wrong = "expected NAME=PORT:FIRST_PORT for each service";
    let (name, ports) = text.split_once('=').ok_or(wrong)?;
    let (port, first_port) = ports.split_once(':').ok_or(wrong)?;
    let number = |text: &str| {
        let number = text.parse().ok().filter(|port: &u16| *port != 0);
        number.ok_or_else(|| wrong.to_owned())
    };
    Ok(Service {
        name: values::from_str(name)?,
        port: number(port)?,
        first_port: number(first_port)?,
    })
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}
