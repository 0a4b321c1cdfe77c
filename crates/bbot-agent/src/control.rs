//! What the agent is told from outside: by signals, or by a program that embeds it.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What the agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Take no new tasks, let finish what runs, within `--drain-timeout`, and end.
    Drain,
    /// End at once: machines are killed, tasks given back.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// Tells an agent. Clones tell the same one.
#[derive(Debug, Clone)]
pub struct Control(mpsc::UnboundedSender<Signal>);

impl Control {
    /// One, and where its agent hears it.
    pub fn new() -> (Self, Signals) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let signals = Signals {
            receiver,
            stop: None,
        };
        (Self(sender), signals)
    }

    /// Tells the agent, unless it has ended.
    pub fn send(&self, signal: Signal) {
        let _ = self.0.send(signal);
    }
}

/// Where an agent hears what it is told.
#[derive(Debug)]
pub struct Signals {
    receiver: mpsc::UnboundedReceiver<Signal>,
    stop: Option<Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>>,
}

impl From<CancellationToken> for Signals {
    /// An agent that is only ever told to end, by cancelling this.
    fn from(stop: CancellationToken) -> Self {
        let (_, mut signals) = Control::new();
        signals.stop = Some(Box::pin(stop.cancelled_owned()));
        signals
    }
}

impl Signals {
    /// The next one; never, when there is nobody who could tell. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        let Self { receiver, stop } = self;
        let stopped = async {
            match stop.as_mut() {
                Some(stop) => stop.await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            match receiver.recv().await {
                Some(signal) => signal,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stopped => {
                self.stop = None;
                Signal::Stop
            }
            signal = heard => signal,
        }
    }
}
