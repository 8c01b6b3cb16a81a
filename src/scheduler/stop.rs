//! What Ctrl-C does. The first request to stop asks running stages to save a checkpoint and end, and starts nothing new; the
//! second one kills them. A batch system asks only once, so a while after its SIGTERM comes the second request by itself. SIGTERM and
//! a closed terminal mean the run, and not its stages: those that can do without it go on. Independent of stages.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::SchedulerError;
use crate::executor::StopSignal;

/// How long after SIGTERM a stage that does not end is killed: enough to write the checkpoint of a model of 4 billion parameters,
/// and less than what batch systems allow.
const DEADLINE: Duration = Duration::from_mins(2);

/// Turns signals into the [`StopSignal`] that running stages watch.
pub(super) struct Stop {
    /// Ctrl-C, a batch system's SIGTERM, a closed terminal; once they are listened for.
    signals: Option<[Signal; 3]>,
    /// When stages are killed, once the batch system has asked to stop.
    deadline: Option<Instant>,
    /// How long they may take.
    patience: Duration,
    /// Whether the last request was meant for the run alone.
    leaves: bool,
    state: watch::Sender<StopSignal>,
}

impl Stop {
    /// Signals still do what they do by default.
    pub(super) fn new() -> Self {
        let state = watch::Sender::new(StopSignal::None);
        Self { signals: None, deadline: None, patience: DEADLINE, leaves: false, state }
    }

    /// Starts listening for signals.
    pub(super) fn listen(&mut self) -> Result<(), SchedulerError> {
        let listen = || -> io::Result<_> {
            Ok([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?])
        };
        self.signals = Some(listen().map_err(SchedulerError::Signals)?);
        Ok(())
    }

    /// Waits for the next signal, or for the deadline.
    pub(super) async fn requested(&mut self) {
        let Some([interrupt, terminate, hangup]) = &mut self.signals else { return std::future::pending().await };
        let deadline = self.deadline;
        let late = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {
                self.deadline = Some(Instant::now() + self.patience);
                self.leaves = true;
                return;
            }
            _ = hangup.recv() => self.leaves = true,
            () = late => {}
        }
        // Whatever came, it does not come twice by itself.
        self.deadline = None;
    }

    /// Sends the next signal to all running stages: `Stop` or `Leave` the first time, `Kill` after that. Returns it.
    pub(super) fn escalate(&self) -> StopSignal {
        let next = match *self.state.borrow() {
            StopSignal::None if self.leaves => StopSignal::Leave,
            StopSignal::None => StopSignal::Stop,
            StopSignal::Leave | StopSignal::Stop | StopSignal::Kill => StopSignal::Kill,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_batch_system_asks_only_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stop = Stop { patience: Duration::from_millis(50), ..Stop::new() };
            stop.listen().unwrap();
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
            stop.requested().await;
            assert_eq!(stop.escalate(), StopSignal::Leave);
            stop.requested().await;
            assert_eq!(stop.escalate(), StopSignal::Kill);
            let third = tokio::time::timeout(Duration::from_millis(200), stop.requested()).await;
            assert!(third.is_err(), "nothing more is requested");
        });
    }
}
