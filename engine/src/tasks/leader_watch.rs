//! Watches the leader manifest of a forwarder with `follow`, and tells the shards when it names another leader than
//! sessions are with.
//!
//! New connections look the manifest up themselves. Running sessions cause no lookup, so that this task does it for them, as
//! often as the record's TTL allows and only while there are sessions. It must not end a session itself: a shard does so after
//! it has verified the new leader, and this task tells it again until no session with an old leader is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::io::target::Target;
use crate::session::server_endpoints::ServerEndpoints;
use crate::tasks::discovery::TargetResolver;

/// How often the cached manifest is looked at. It is also the shortest time for which a record is cached.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a lookup that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// The task and what it needs.
pub(crate) struct LeaderWatch<F> {
    pub(crate) resolver: Arc<TargetResolver>,
    pub(crate) endpoints: Arc<ServerEndpoints>,
    /// Tells the shards.
    pub(crate) announce: F,
}

impl<F: Fn(&Arc<Target>)> LeaderWatch<F> {
    /// Runs for as long as the process.
    pub(crate) async fn run(self) {
        let mut failing = false;
        loop {
            sleep(CHECK_INTERVAL).await;
            let live = self.endpoints.live();
            if live.is_empty() {
                continue;
            }
            match self.resolver.resolve(None).await {
                Ok(leader) => {
                    failing = false;
                    let mut live = live.iter();
                    if live.any(|endpoint| endpoint.was_replaced_by(&leader)) {
                        (self.announce)(&leader);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            reason = error.code(), %error,
                            "cannot look up who leads: sessions stay with their server"
                        );
                    }
                    sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }
}
