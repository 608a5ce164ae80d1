//! Tells the service manager how far the gateway is, where there is one that wants to know (`Type=notify`, sd_notify(3)).

use sd_notify::NotifyState;
use tracing::warn;

/// The ports are open and served.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The drain has begun.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd can't be told");
    }
}
