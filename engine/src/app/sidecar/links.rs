//! The ports on loopback that lead to the services of all members, and what links need.
//!
//! The ports are bound at start, before anything that may wait, so that another process on one of them is an error
//! at once. They accept on the control thread, which gives each connection to a shard: there are few of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::app::error::{StartError, system};
use crate::attestation::verifier::{QuoteVerifier, start_verify_pool};
use crate::cluster::state::ClusterState;
use crate::config::Config;
use crate::io::boot_id;
use crate::io::listener::{self, BoundListener};
use crate::io::target::TargetSpec;
use crate::proxy::link::LinkState;
use crate::shard::message::LinkRoute;
use crate::shard::pool::LinkDispatcher;
use crate::tasks::discovery::{DnsClient, TargetResolver};
use crate::telemetry::link_metrics;
use crate::telemetry::metrics::Metrics;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The ports, which do not accept connections yet.
pub(super) struct LinkPorts(Vec<(LinkRoute, BoundListener)>);

impl LinkPorts {
    /// Binds a port for each service of each member, and registers the metrics of links.
    ///
    /// # Errors
    /// Another process has one of the ports.
    pub(super) fn bind(config: &Config, metrics: &Metrics) -> Result<Self, StartError> {
        let Some(cluster) = &config.cluster else {
            return Ok(Self(Vec::new()));
        };
        let services = LinkState::services(cluster);
        link_metrics::register_all(metrics, &services, config.process.shards);
        let mut ports = Vec::new();
        for (member, name) in cluster.members.iter().map(|member| member.name).enumerate() {
            for (service, found) in cluster.services.iter().enumerate() {
                let address = found.address_of(member);
                let bound = listener::bind(address, 1).map_err(system(format!(
                    "cannot listen on {address}, which leads to {} of member {name}: another process has the port; \
                     stop it, or set other ports in cluster_services on all members",
                    found.name
                )))?;
                ports.push((LinkRoute { member, service }, bound));
            }
        }
        Ok(Self(ports))
    }

    /// Accepts connections until the control thread ends.
    ///
    /// # Errors
    /// Another process has taken one of the ports meanwhile.
    pub(super) fn open(self, dispatcher: &LinkDispatcher) -> Result<(), StartError> {
        for (route, bound) in self.0 {
            let address = bound.address();
            let failed = || system(format!("cannot listen on {address}"));
            for listener in bound.open().map_err(failed())? {
                listener.set_nonblocking(true).map_err(failed())?;
                let listener = TcpListener::from_std(listener).map_err(failed())?;
                tokio::spawn(accept_all(listener, address, route, dispatcher.clone()));
            }
        }
        Ok(())
    }
}

async fn accept_all(
    listener: TcpListener,
    address: SocketAddr,
    route: LinkRoute,
    dispatcher: LinkDispatcher,
) {
    let mut failing = false;
    loop {
        let accepted = listener.accept().await;
        let opened =
            accepted.and_then(|(stream, peer)| dispatcher.open(stream.into_std()?, peer, route));
        match opened {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, %address, "accept failed");
                }
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// What all shards need for links.
///
/// # Errors
/// Names cannot be resolved on this machine, or the system cannot create another thread or does not show its boot id.
pub(super) fn state(
    state: &ClusterState,
    quote_verifier: Option<&Arc<QuoteVerifier>>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<LinkState>, StartError> {
    let cluster = &state.config;
    let dns = Arc::new(DnsClient::new(None)?);
    let control = tokio::runtime::Handle::current();
    let members = cluster.members.iter().enumerate();
    let resolvers = members.map(|(position, member)| {
        let spec = TargetSpec::Fixed {
            host: member.host.clone(),
            port: member.port,
        };
        (position != cluster.own)
            .then(|| TargetResolver::new(spec, Arc::clone(&dns), control.clone()))
    });
    let members = match quote_verifier {
        Some(verifier) => {
            let pool = start_verify_pool().map_err(system("cannot start a thread"))?;
            Some((Arc::clone(verifier.start_members()), pool))
        }
        None => None,
    };
    let names = cluster.members.iter();
    Ok(Arc::new(LinkState {
        cluster: cluster.clone(),
        names: names.map(|member| member.name.as_str().into()).collect(),
        resolvers: resolvers.collect(),
        members,
        member_names: Arc::clone(&state.member_names),
        boot_id: boot_id::read().map_err(system("cannot read the boot id of this machine"))?,
        metrics: Arc::clone(metrics),
    }))
}
