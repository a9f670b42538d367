//! The factory that builds the connection handler of each of the sidecar's shards.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use crate::attestation::gate::{AttestingGate, Gate};
use crate::attestation::verifier::{QuoteVerifier, verify_pool_options};
use crate::auth::client_auth::ClientAuth;
use crate::auth::failed_logins::FailedLogins;
use crate::cluster::state::ClusterState;
use crate::config::{Config, ProcessConfig};
use crate::io::offload::OffloadPool;
use crate::postgres::session_address::SessionAddress;
use crate::postgres::session_settings::SessionSettings;
use crate::proxy::inbound;
use crate::proxy::link::LinkState;
use crate::proxy::upstream::UpstreamLogin;
use crate::shard::context::{HandlerFactory, ShardContext};
use crate::shard::handler::HandlerContext;
use crate::shard::live_config::LiveConfig;
use crate::tasks::role_repair::RepairTrigger;
use crate::tasks::upstream_version::UpstreamVersion;
use crate::telemetry::audit::AuditHandle;
use crate::telemetry::metrics::Metrics;

/// Builds the handlers. Holds the state that all shards share.
pub(crate) struct InboundHandlerFactory {
    live: Arc<LiveConfig>,
    quote_verifier: Option<Arc<QuoteVerifier>>,
    upstream_version: Arc<UpstreamVersion>,
    session_settings: Arc<SessionSettings>,
    repair_trigger: Arc<RepairTrigger>,
    verify_pool: OffloadPool,
    worker: OffloadPool,
    passwordless_superuser: bool,
    own: Arc<SessionAddress>,
    plaintext_cancel: bool,
    require_alpn: bool,
    client_auth: ClientAuth,
    scram_channel_binding: bool,
    superuser_logins: bool,
    proxy_protocol_from: Vec<ipnet::IpNet>,
    audit: Option<AuditHandle>,
    links: Option<Arc<LinkState>>,
    cluster: Option<Arc<ClusterState>>,
}

/// The state that the shards share with the control thread.
pub(crate) struct SharedState {
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) quote_verifier: Option<Arc<QuoteVerifier>>,
    pub(crate) upstream_version: Arc<UpstreamVersion>,
    pub(crate) session_settings: Arc<SessionSettings>,
    /// Where sessions are opened.
    pub(crate) own: Arc<SessionAddress>,
    pub(crate) repair_trigger: Arc<RepairTrigger>,
    pub(crate) audit: Option<AuditHandle>,
    /// For links, if this sidecar belongs to a cluster.
    pub(crate) links: Option<Arc<LinkState>>,
    /// The cluster that this sidecar belongs to, if it does.
    pub(crate) cluster: Option<Arc<ClusterState>>,
}

impl InboundHandlerFactory {
    /// Starts the offload threads.
    ///
    /// # Errors
    /// The system cannot create another thread.
    pub(crate) fn new(config: &Config, shared: &SharedState) -> io::Result<Arc<Self>> {
        let ProcessConfig {
            shards,
            login_timeout,
            ..
        } = config.process;
        // A shard at its limit completes as many handshakes as half a thread verifies (docs/adr/0040-storms.md). Who
        // would wait for longer than a login may take is told so immediately.
        let verify = verify_pool_options(shards.div_ceil(2), login_timeout);
        let (verify_pool, _) = OffloadPool::start_workers(verify)?;
        Ok(Arc::new(Self {
            live: Arc::clone(&shared.live),
            quote_verifier: shared.quote_verifier.clone(),
            upstream_version: Arc::clone(&shared.upstream_version),
            session_settings: Arc::clone(&shared.session_settings),
            repair_trigger: Arc::clone(&shared.repair_trigger),
            verify_pool,
            worker: OffloadPool::start("worker", 0)?,
            passwordless_superuser: config.passwordless_superuser,
            own: Arc::clone(&shared.own),
            plaintext_cancel: config.plaintext_cancel,
            require_alpn: config.require_alpn,
            client_auth: config.client_auth,
            scram_channel_binding: config.scram_channel_binding,
            superuser_logins: config.superuser_logins,
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            audit: shared.audit.clone(),
            links: shared.links.clone(),
            cluster: shared.cluster.clone(),
        }))
    }
}

impl HandlerFactory for InboundHandlerFactory {
    type Handler = inbound::InboundHandler;

    fn handler(self: &Arc<Self>, context: ShardContext) -> inbound::InboundHandler {
        let gate = match &self.quote_verifier {
            None => Gate::Open,
            Some(quote_verifier) => Gate::attesting(AttestingGate::new(
                quote_verifier,
                &self.verify_pool,
                &context.jobs,
                &context.shard_metrics,
                false,
            )),
        };
        let links = self.links.as_ref().map(|links| links.on_shard(&context));
        let (links, link_context) = links.unzip();
        inbound::InboundHandler {
            context: HandlerContext {
                handshake_queue: context.handshake_queue,
                gate,
                shard_metrics: context.shard_metrics,
                access_log: context.access_log,
                audit: self.audit.as_ref().map(AuditHandle::shard),
                links: link_context,
            },
            links,
            live: Arc::clone(&self.live),
            upstream_login: UpstreamLogin {
                own: Arc::clone(&self.own),
                upstream_version: Arc::clone(&self.upstream_version),
                session_settings: Arc::clone(&self.session_settings),
                repair_trigger: Arc::clone(&self.repair_trigger),
                worker: self.worker.clone(),
                jobs: context.jobs,
                keys: RefCell::default(),
                random: self.live.read().tls.crypto_provider().secure_random,
            },
            plaintext_cancel: self.plaintext_cancel,
            trust_loopback: self.passwordless_superuser,
            require_alpn: self.require_alpn,
            client_auth: self.client_auth,
            scram_channel_binding: self.scram_channel_binding,
            superuser_logins: self.superuser_logins,
            failed_logins: FailedLogins::default(),
            proxy_protocol_from: self.proxy_protocol_from.clone(),
            cluster: self.cluster.clone(),
        }
    }
}
