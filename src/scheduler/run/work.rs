//! What happens while stages run: which event is handled when, and what becomes of stages if the run can't go on. Independent of what is
//! done about each event.

use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{Run, exchange, outlook};
use crate::{
    executor::StopSignal,
    scheduler::{SchedulerError, event::RunEvent, step::StepEvent},
};

impl Run<'_, '_> {
    /// Runs what can run, until no stage does.
    pub(super) async fn work(
        &mut self,
        received: &mut mpsc::UnboundedReceiver<(usize, StepEvent)>,
    ) -> Result<(), SchedulerError> {
        let mut tick = tokio::time::interval(outlook::INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.ask_for_ready();
            self.start_ready()?;
            tokio::select! {
                biased;
                () = self.stop.requested() => self.escalate(),
                Some((stage, event)) = received.recv() => self.on_event(stage, event),
                ended = self.steps.join_next() => match ended {
                    Some(ended) => {
                        let (stage, end) = ended?;
                        // Events that were sent before the end are reported before it.
                        while let Ok((stage, event)) = received.try_recv() {
                            self.on_event(stage, event);
                        }
                        self.on_end(stage, end)?;
                        tick.reset_immediately();
                    }
                    None => return Ok(()),
                },
                sent = exchange::next_sent(&mut self.supply) => self.on_sent(&sent),
                _ = tick.tick() => self.report_outlook(),
            }
        }
    }

    fn escalate(&mut self) {
        let at_once = self.stop.escalate() == StopSignal::Kill;
        (self.report)(&RunEvent::Stopping { at_once });
    }

    /// Lets the stages that still run save and end, since this run can't go on: dropped, they would be killed.
    pub(super) async fn wind_down(&mut self, received: &mut mpsc::UnboundedReceiver<(usize, StepEvent)>) {
        if self.stop.leave() && !self.steps.is_empty() {
            (self.report)(&RunEvent::Stopping { at_once: false });
        }
        loop {
            tokio::select! {
                biased;
                () = self.stop.requested() => self.escalate(),
                Some((stage, event)) = received.recv() => self.on_event(stage, event),
                ended = self.steps.join_next() => if ended.is_none() { return },
            }
        }
    }
}
