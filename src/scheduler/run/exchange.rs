//! The remote cache in a run: ready stages are asked for there before they start, and what was made is sent while others run.

use tokio::{sync::oneshot, time::sleep};

use super::{
    super::{
        MissReason, RunEvent, SchedulerError,
        board::Todo,
        remote::{Patience, Question, Sent, Supply, TICK, ask},
        step::StepEnd,
    },
    Run, Running,
};
use crate::{
    executor::StopSignal,
    remote::{Trouble, Uses},
    store::StoreError,
};

/// The next result whose sending has ended; never without a remote cache.
pub(super) async fn next_sent(supply: &mut Option<Supply>) -> Sent {
    match supply {
        Some(supply) => supply.next().await,
        None => std::future::pending().await,
    }
}

impl Run<'_, '_> {
    pub(super) fn remote_address(&self) -> String {
        self.supply.as_ref().map(|supply| supply.remote.address()).unwrap_or_default()
    }

    /// Has the results sent that earlier runs could not send.
    pub(super) fn resume_sending(&mut self) -> Result<(), StoreError> {
        let Some(supply) = &mut self.supply else { return Ok(()) };
        let _guard = self.planner.store.guard()?;
        let keys = supply.resume();
        self.lease.add(&keys, &[])
    }

    /// Asks the remote cache for ready stages. That takes none of the machine's resources.
    pub(super) fn ask_for_ready(&mut self) {
        let mut last = None;
        while let Some(stage) = self.board.next_ready(last).filter(|_| !self.stop.is_requested()) {
            last = Some(stage);
            if !self.is_asked_for(stage) {
                continue;
            }
            let (Some(supply), Some(todo)) = (&mut self.supply, self.board.todo(stage)) else { return };
            let key = todo.manifest.key();
            if !supply.begin(key) {
                return;
            }
            let remote = supply.remote.clone();
            let Some(Todo { manifest, reason }) = self.board.start(stage) else { continue };
            self.running.insert(stage, Running { reason, allocation: None, is_asked: true });
            let question = Question { index: stage, key, manifest };
            let (store, stop) = (self.planner.store.clone(), self.stop.subscribe());
            self.steps.spawn(ask(question, remote, store, stop, self.events.clone()));
        }
    }

    /// Whether the remote cache has still to be asked for a ready stage.
    pub(super) fn is_asked_for(&self, stage: usize) -> bool {
        let (Some(supply), Some(todo)) = (&self.supply, self.board.todo(stage)) else { return false };
        let key = todo.manifest.key();
        // A job that an earlier run has submitted goes on, and is followed.
        todo.reason != MissReason::Forced && supply.is_open(key) && !self.planner.store.work(key).is_submitted()
    }

    /// Fails a ready stage that can never run on this machine. The run was begun in the hope for the remote cache.
    pub(super) fn refuse(&mut self, stage: usize) -> Result<bool, SchedulerError> {
        if self.supply.is_none() {
            return Ok(false);
        }
        let problem = self.options.machine.refuses_stage(&self.planner.pipeline.stages[stage]);
        let Some(problem) = problem.filter(|_| self.board.start(stage).is_some()) else { return Ok(false) };
        let message = format!("{}, and the remote cache does not have its result", problem.message);
        self.on_end(stage, StepEnd::Failed { message, help: problem.help, log: None, tail: Vec::new() })?;
        Ok(true)
    }

    /// Handles the end of sending a result.
    pub(super) fn on_sent(&mut self, sent: &Sent) {
        let Some(supply) = &mut self.supply else { return };
        supply.on_sent(sent);
        if let Some(warning) = supply.remote.take_warning() {
            let name = sent.stage.map_or("remote", |stage| self.planner.pipeline.stages[stage].name.as_str());
            (self.report)(&RunEvent::Warning { stage: name, message: &warning });
        }
    }

    /// Waits until everything is sent, unless the user wants to stop; says what was exchanged.
    pub(super) async fn finish_sending(&mut self) {
        let to = self.remote_address();
        let mut recorded = self.record_uses();
        let Some(mut patience) = self.supply.as_ref().map(|supply| Patience::new(&supply.remote)) else { return };
        while let Some(supply) = &mut self.supply {
            let (results, done, total) = supply.sending();
            if (results == 0 && recorded.is_none()) || self.stop.is_requested() {
                break;
            }
            if patience.is_over((results as u64, done), supply.is_busy_here()) {
                supply.remote.note(&Trouble::Place("it does not answer".into()));
                break;
            }
            if results > 0 {
                (self.report)(&RunEvent::Sending { results, done, total, to: &to });
            }
            tokio::select! {
                biased;
                () = self.stop.requested() => {
                    let at_once = self.stop.escalate() == StopSignal::Kill;
                    (self.report)(&RunEvent::Stopping { at_once });
                }
                sent = supply.next() => self.on_sent(&sent),
                () = wait(&mut recorded) => recorded = None,
                () = sleep(TICK) => {}
            }
        }
        let Some(supply) = &mut self.supply else { return };
        supply.remote.stop();
        if let Some(warning) = supply.remote.take_warning() {
            (self.report)(&RunEvent::Warning { stage: "remote", message: &warning });
        }
        if let Some(exchange) = supply.exchange() {
            (self.report)(&RunEvent::Remote(exchange));
        }
    }

    /// Tells the remote cache what this run uses, if it exchanged something with it.
    fn record_uses(&mut self) -> Option<oneshot::Receiver<()>> {
        let supply = self.supply.as_ref().filter(|supply| supply.has_uses())?;
        let stages = 0..self.planner.pipeline.stages.len();
        let keys = stages.filter_map(|stage| Some(self.board.done(stage)?.hit.key)).collect();
        let uses = Uses { pipeline: self.planner.pipeline.name.clone(), keys };
        Some(supply.record_uses(&self.lease.id(), uses))
    }
}

/// Waits until it is recorded what this run uses.
async fn wait(recorded: &mut Option<oneshot::Receiver<()>>) {
    match recorded {
        Some(recorded) => drop(recorded.await),
        None => std::future::pending().await,
    }
}
