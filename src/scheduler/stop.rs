//! What Ctrl-C does. The first request to stop asks running stages to save a checkpoint and end, and starts nothing new; the
//! second one kills them. Independent of stages.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::SchedulerError;
use crate::executor::StopSignal;

/// Turns signals into the [`StopSignal`] that running stages watch.
pub(super) struct Stop {
    /// Ctrl-C, a batch system's SIGTERM, a closed terminal.
    signals: [Signal; 3],
    state: watch::Sender<StopSignal>,
}

impl Stop {
    /// Starts listening for signals.
    pub(super) fn new() -> Result<Self, SchedulerError> {
        let listen = || -> io::Result<_> {
            Ok([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?])
        };
        Ok(Self { signals: listen().map_err(SchedulerError::Signals)?, state: watch::Sender::new(StopSignal::None) })
    }

    /// Waits for the next signal.
    pub(super) async fn requested(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// Sends the next signal to all running stages: `Stop` the first time, `Kill` after that. Returns it.
    pub(super) fn escalate(&self) -> StopSignal {
        let next = match *self.state.borrow() {
            StopSignal::None => StopSignal::Stop,
            StopSignal::Stop | StopSignal::Kill => StopSignal::Kill,
        };
        self.state.send_replace(next);
        next
    }

    /// Whether a stop was requested.
    pub(super) fn is_requested(&self) -> bool {
        *self.state.borrow() != StopSignal::None
    }

    /// A receiver for a running stage to watch.
    pub(super) fn subscribe(&self) -> watch::Receiver<StopSignal> {
        self.state.subscribe()
    }
}
