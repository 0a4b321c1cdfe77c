//! What other controllers over the same store tell: agents that wait here, and who follows a log here, are told too.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::App;
use crate::store::{Listener, News};

/// After an error of the store it is tried again so much later.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// What is known of a queue that others change too is believed for so long, however quiet they are: what they tell is a hint.
const BELIEVED: Duration = Duration::from_secs(5);

/// The same for the lanes that builds wait in, which change seldom: who waits for one that nobody told of asks again within a minute anyway.
const LANES_BELIEVED: Duration = Duration::from_secs(30);

impl App {
    /// Hears the other controllers until `shutdown`; with a store that is not shared there are none.
    pub(crate) async fn hear_neighbours(&self, shutdown: &CancellationToken) {
        loop {
            let heard = async {
                let Some(mut listener) = self.store.listen().await? else {
                    return Ok(());
                };
                self.hear(&mut listener).await
            };
            let heard = tokio::select! {
                () = shutdown.cancelled() => return,
                heard = heard => heard,
            };
            match heard {
                Ok(()) => return,
                Err(e) => tracing::warn!("cannot hear other controllers: {e}"),
            }
            let desk = self.desk();
            desk.lanes.may_be_more();
            desk.heads.all_changed();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(AFTER_ERROR) => {}
            }
        }
    }

    async fn hear(&self, listener: &mut Listener) -> Result<(), crate::store::StoreError> {
        // Whatever was told before this was missed.
        let mut news = vec![News::Missed];
        let mut believed = tokio::time::interval(BELIEVED);
        let mut lanes_believed = tokio::time::interval(LANES_BELIEVED);
        loop {
            for news in news {
                match news {
                    News::Queued {
                        kind,
                        is_plain,
                        builds,
                    } => {
                        let desk = self.desk();
                        if !desk.queued_elsewhere(kind, builds) && !is_plain {
                            // The first one in that lane.
                            desk.lanes.may_be_more();
                            self.learn_lanes(&desk).await?;
                            desk.queued_elsewhere(kind, builds);
                        }
                    }
                    News::Changed(build) => {
                        self.changes.tell(build);
                        self.ends.tell(build);
                    }
                    News::Missed => {
                        self.desk().all_changed();
                        self.changes.tell_all();
                        self.ends.tell_all();
                        self.hear_said().await?;
                    }
                    News::Agents => self.hear_said().await?,
                }
            }
            let mut next = std::pin::pin!(listener.next());
            news = loop {
                tokio::select! {
                    news = next.as_mut() => break news?,
                    _ = believed.tick() => self.desk().heads.all_changed(),
                    _ = lanes_believed.tick() => self.desk().lanes.may_be_more(),
                }
            };
        }
    }
}
