//! Tells systemd (`Type=notify` or `notify-reload`), where it is there to be
//! told, what the process is doing. [sd_notify(3)]

use sd_notify::NotifyState;

/// Clients can connect; also the end of a reload, whatever came of it.
pub(crate) fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again. Without the time, `notify-reload`
/// would not know this answer from that to an earlier SIGHUP.
pub(crate) fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock"),
    }
}

/// Sessions are let go.
pub(crate) fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
