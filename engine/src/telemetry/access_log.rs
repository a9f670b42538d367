//! One log line for each connection.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::config::mode::Mode;
use crate::io::peer::Peer;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin};
use crate::telemetry::connection_info::ConnectionInfo;

/// Lines about refused clients that a shard writes a second; the rest is
/// counted. A flood of bad connections must not become a flood of lines.
const REFUSALS_A_SECOND: u32 = 50;

/// A shard's pen.
#[derive(Default)]
pub(crate) struct AccessLog {
    /// Named in every line where it is not production.
    mode: Option<&'static str>,
    second: RefCell<Option<Instant>>,
    written: Cell<u32>,
    suppressed: Cell<u64>,
}

impl AccessLog {
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            mode: (mode != Mode::Production).then(|| mode.name()),
            ..Self::default()
        }
    }

    /// The one line about a connection.
    pub(crate) fn ended(
        &self,
        info: &ConnectionInfo,
        (received, sent): (u64, u64),
        end: &CloseReason,
    ) {
        if end.origin() == ErrorOrigin::Client && !self.may_write() {
            return;
        }
        let (peer, mode) = (info.peer, self.mode);
        let client = info.proxied.map(tracing::field::display);
        let role = info.role.map(crate::auth::role::Role::name);
        let tls = info.tls.and_then(|version| version.as_str());
        let reason = end.code();
        let duration = info.accepted.elapsed().as_millis();
        let duration_ms = u64::try_from(duration).unwrap_or(u64::MAX);
        macro_rules! line {
            ($level:ident, $message:literal, $detail:expr) => {
                tracing::$level!(
                    %peer,
                    client,
                    role,
                    tls,
                    mode,
                    duration_ms,
                    received,
                    sent,
                    reason,
                    detail = $detail,
                    $message
                )
            };
        }
        let detail = Some(tracing::field::display(end));
        match (end, end.origin()) {
            (CloseReason::TlsHandshake(_), _) => line!(warn, "TLS handshake failed", detail),
            (CloseReason::Inject(_), _) => line!(warn, "connection refused", detail),
            (_, ErrorOrigin::Sidecar) => line!(error, "connection lost", detail),
            (_, ErrorOrigin::Upstream) => line!(warn, "connection refused", detail),
            (_, ErrorOrigin::Client) => line!(info, "connection refused", detail),
            (_, ErrorOrigin::None) => {
                line!(
                    info,
                    "connection ended",
                    None::<tracing::field::DisplayValue<&CloseReason>>
                );
            }
        }
    }

    /// A connection so far past the limit that it was not even told.
    pub(crate) fn dropped_over_limit(&self, peer: Peer) {
        if self.may_write() {
            tracing::warn!(%peer, reason = "too_many_connections", "connection dropped");
        }
    }

    fn may_write(&self) -> bool {
        let mut second = self.second.borrow_mut();
        let now = Instant::now();
        if second.is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1)) {
            *second = Some(now);
            self.written.set(0);
            let suppressed = self.suppressed.replace(0);
            if suppressed > 0 {
                tracing::warn!(suppressed, "refusals not logged one by one");
            }
        }
        if self.written.get() >= REFUSALS_A_SECOND {
            self.suppressed.set(self.suppressed.get() + 1);
            return false;
        }
        self.written.set(self.written.get() + 1);
        true
    }
}
