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

/// Of SIGTERM and SIGHUP, what comes so soon after the first has the same cause: who ends a session sends both, and who closes a terminal
/// may send the second twice.
const TOGETHER: Duration = Duration::from_secs(5);

/// Turns signals into the [`StopSignal`] that running stages watch.
pub(super) struct Stop {
    /// Ctrl-C, a batch system's SIGTERM, a closed terminal; once they are listened for.
    signals: Option<[Signal; 3]>,
    /// When stages are killed, once the batch system has asked to stop.
    deadline: Option<Instant>,
    /// How long they may take.
    patience: Duration,
    /// When the first request came that was meant for the run alone, if there was one.
    left: Option<Instant>,
    state: watch::Sender<StopSignal>,
}

impl Stop {
    /// Signals still do what they do by default.
    pub(super) fn new() -> Self {
        let state = watch::Sender::new(StopSignal::None);
        Self { signals: None, deadline: None, patience: DEADLINE, left: None, state }
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
        let late = until(self.deadline);
        tokio::pin!(late);
        loop {
            let (mut asks, mut deadline) = (false, None);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => (asks, deadline) = (true, Some(Instant::now() + self.patience)),
                _ = hangup.recv() => asks = true,
                () = &mut late => {}
            }
            if asks && self.left.is_some_and(|at| at.elapsed() < TOGETHER) {
                self.deadline = self.deadline.or(deadline);
                if deadline.is_some() {
                    late.set(until(self.deadline));
                }
                continue;
            }
            if asks {
                self.left = Some(Instant::now());
            }
            // Whatever came, it does not come twice by itself.
            self.deadline = deadline;
            return;
        }
    }

    /// Sends the next signal to all running stages: `Stop` or `Leave` the first time, `Kill` after that. Returns it.
    pub(super) fn escalate(&self) -> StopSignal {
        let next = match *self.state.borrow() {
            StopSignal::None if self.left.is_some() => StopSignal::Leave,
            StopSignal::None => StopSignal::Stop,
            StopSignal::Leave | StopSignal::Stop | StopSignal::Kill => StopSignal::Kill,
        };
        self.state.send_replace(next);
        next
    }

    /// Has running stages do what they do when only this run ends. False if they were told to stop before.
    pub(super) fn leave(&self) -> bool {
        self.state.send_if_modified(|state| {
            let is_first = *state == StopSignal::None;
            if is_first {
                *state = StopSignal::Leave;
            }
            is_first
        })
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

/// Waits until then, or for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
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

            // Who ends a session sends both. That is one request, and a deadline all the same.
            let mut stop = Stop { patience: Duration::from_millis(300), ..Stop::new() };
            stop.listen().unwrap();
            let send = |signal| rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
            send(rustix::process::Signal::HUP);
            stop.requested().await;
            assert_eq!(stop.escalate(), StopSignal::Leave);
            send(rustix::process::Signal::TERM);
            send(rustix::process::Signal::HUP);
            let second = tokio::time::timeout(Duration::from_millis(100), stop.requested()).await;
            assert!(second.is_err(), "it is the same request");
            tokio::time::timeout(Duration::from_secs(5), stop.requested()).await.unwrap();
            send(rustix::process::Signal::INT);
            stop.requested().await;
            assert_eq!(stop.escalate(), StopSignal::Kill);
        });
    }
}
