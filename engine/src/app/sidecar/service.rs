//! Builds the connection handler of each of the sidecar's shards.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use crate::attestation::gate::{Gate, Guard};
use crate::attestation::verifier::{Trust, verify_thread};
use crate::config::Config;
use crate::config::mode::Mode;
use crate::io::offload::OffloadThread;
use crate::io::stream::Endpoint;
use crate::proxy::inbound;
use crate::proxy::upstream::Injector;
use crate::shard::Common;
use crate::shard::context::{Desk, Plan};
use crate::shard::live_config::Live;
use crate::tasks::upstream_version::Knowledge;
use crate::telemetry::metrics::Metrics;

/// What the sidecar's shards are built from.
pub(crate) struct SidecarPlan {
    live: Arc<Live>,
    trust: Option<Arc<Trust>>,
    knowledge: Arc<Knowledge>,
    verify: OffloadThread,
    worker: OffloadThread,
    mode: Mode,
    endpoint: Endpoint,
    plaintext_cancel: bool,
    require_alpn: bool,
    proxy_protocol_from: Vec<ipnet::IpNet>,
}

/// What they share with the control thread.
pub(crate) struct Shared {
    pub(crate) live: Arc<Live>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) trust: Option<Arc<Trust>>,
    pub(crate) knowledge: Arc<Knowledge>,
}

impl SidecarPlan {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn new(config: &Config, shared: &Shared) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            live: Arc::clone(&shared.live),
            trust: shared.trust.clone(),
            knowledge: Arc::clone(&shared.knowledge),
            verify: verify_thread()?,
            worker: OffloadThread::start("worker", 0)?,
            mode: config.mode,
            endpoint: config.postgres.clone(),
            plaintext_cancel: config.plaintext_cancel,
            require_alpn: config.require_alpn,
            proxy_protocol_from: config.proxy_protocol_from.clone(),
        }))
    }
}

impl Plan for SidecarPlan {
    type Service = inbound::Service;

    fn service(self: &Arc<Self>, desk: Desk) -> inbound::Service {
        let gate = match &self.trust {
            None => Gate::Open,
            Some(trust) => Gate::guarded(Guard::new(
                trust,
                &self.verify,
                &desk.jobs,
                &desk.meters,
                false,
            )),
        };
        inbound::Service {
            common: Common {
                lane: desk.lane,
                gate,
                meters: desk.meters,
                journal: desk.journal,
            },
            live: Arc::clone(&self.live),
            injector: Injector {
                endpoint: self.endpoint.clone(),
                knowledge: Arc::clone(&self.knowledge),
                worker: self.worker.clone(),
                jobs: desk.jobs,
                keys: RefCell::default(),
                random: self.live.read().tls.crypto_provider().secure_random,
            },
            plaintext_cancel: self.plaintext_cancel,
            trust_loopback: self.mode == Mode::Simulator,
            require_alpn: self.require_alpn,
            proxy_protocol_from: self.proxy_protocol_from.clone(),
        }
    }
}
