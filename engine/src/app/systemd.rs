//! Notifies systemd of the state of the process (`Type=notify` or `notify-reload`).
//!
//! Without `NOTIFY_SOCKET` in the environment it does nothing. [sd_notify(3)]

use sd_notify::NotifyState;

/// Clients can connect. Also sent at the end of a reload, whether it succeeded or not.
pub(crate) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is being read again. `notify-reload` needs the time, to tell this
/// notification from that of an earlier SIGHUP.
pub(crate) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the monotonic clock for systemd"),
    }
}

/// The process drains its sessions.
pub(crate) fn notify_stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
