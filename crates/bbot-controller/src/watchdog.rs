//! Telling systemd how the controller is: that it works, that it stops, and (`WatchdogSec=`) that it comes round.
//!
//! Whoever else started it has not set `NOTIFY_SOCKET`, and nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::http::App;

/// A database of somebody else's that says nothing for so long is away: starting the controller again would not mend it.
const AWAY: Duration = Duration::from_secs(10);

/// Says this to systemd. It does not depend on being heard.
pub fn say(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!("sd_notify: {e}");
    }
}

/// Says that it goes on as long as everything that a task passes through does, until `shutdown`. What hangs is not told of, and
/// systemd starts the controller anew.
pub(crate) async fn watch(app: Arc<App>, shutdown: &CancellationToken) {
    let Some(timeout) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = come_round(&app) => say(NotifyState::Watchdog),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(timeout / 3) => {}
        }
    }
}

/// Goes the way of a task: the queue in memory, the leases, reading and writing. An error is an answer too: whoever asks is told, and
/// it heals by itself.
async fn come_round(app: &Arc<App>) {
    let way = async {
        app.look_at_desk().await;
        let _ = app.requeue_lapsed().await;
        app.write_nothing().await;
    };
    if app.is_shared() {
        let _ = tokio::time::timeout(AWAY, way).await;
    } else {
        way.await;
    }
}
