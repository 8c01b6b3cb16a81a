//! What the end of a stage means for the run: results are published, what waited for them is resolved, and what is gone is made
//! again.

use super::{
    super::{RunEvent, SchedulerError, board::Done, step::StepEnd},
    Run, Running,
};
use crate::store::{Digest, Hit, Manifest, StoreError, source_digest};

impl Run<'_, '_> {
    /// Handles the end of a running stage.
    pub(super) fn on_end(&mut self, stage: usize, end: StepEnd) -> Result<(), SchedulerError> {
        if let Some(Running { allocation, is_asked, .. }) = self.running.remove(&stage) {
            if let Some(allocation) = allocation {
                self.pool.release(allocation);
            }
            if let Some(supply) = self.supply.as_mut().filter(|_| is_asked) {
                supply.ended();
            }
        }
        match end {
            StepEnd::Requeue => {
                let stages = self.board.requeue(stage);
                self.resolve(stages)?;
            }
            StepEnd::InputLost(tree) => self.input_lost(stage, tree)?,
            StepEnd::Ran(receipt, _) if self.changed_sources(stage, &receipt.manifest) => {
                self.planner.store.remove_receipt(receipt.key())?;
                let message = "its source changed while it was being read".to_string();
                let help = Some("run the same command again".to_string());
                self.on_end(stage, StepEnd::Failed { message, help, log: None, tail: Vec::new() })?;
            }
            StepEnd::Ran(receipt, folder) => {
                let hit = Hit::from(*receipt);
                // Unchecked results are records for this machine.
                let sent = (!hit.unchecked).then_some(hit.key);
                self.finished(stage, Done { hit: Box::new(hit), folder, ran: true })?;
                if let (Some(supply), Some(key)) = (&mut self.supply, sent) {
                    supply.send(key, stage);
                }
            }
            StepEnd::Found(hit, folder) => self.finished(stage, Done { hit, folder, ran: false })?,
            StepEnd::Cancelled => {
                self.board.stopped(stage);
                (self.report)(&RunEvent::Cancelled { stage: &self.planner.pipeline.stages[stage].name });
            }
            StepEnd::Failed { message, help, log, tail } => {
                let name = &self.planner.pipeline.stages[stage].name;
                let help = help.as_deref();
                (self.report)(&RunEvent::Failed { stage: name, message: &message, help, log, tail: &tail });
                for effect in self.board.failed(stage) {
                    self.report_effect(effect);
                }
            }
        }
        Ok(())
    }

    /// Has an input that is gone made again before `stage`, once; then fails.
    fn input_lost(&mut self, stage: usize, tree: Digest) -> Result<(), SchedulerError> {
        let made = |from: &usize| self.board.done(*from).is_some_and(|done| done.hit.output.digest == tree);
        let makers: Vec<usize> = self.planner.graph.inputs(stage).filter(made).collect();
        let pipeline = self.planner.pipeline;
        let left_out = makers.iter().find(|maker| !self.options.selection.includes(**maker));
        if let Some(maker) = left_out.or_else(|| makers.iter().find(|maker| self.reopened.contains(*maker))) {
            let maker = &pipeline.stages[*maker].name;
            let message = format!("its input `{maker}` was changed and can't be restored");
            let help = match left_out {
                Some(_) => format!("run without selecting stages, or include `{maker}`, to make it again"),
                None => "let no other program write into artifacts, then run the same command again".into(),
            };
            return self.on_end(stage, StepEnd::Failed { message, help: Some(help), log: None, tail: Vec::new() });
        }
        let mut open = self.board.requeue(stage);
        for maker in makers {
            self.reopened.insert(maker);
            open.extend(self.board.reopen(maker));
        }
        Ok(self.resolve(open)?)
    }

    /// Publishes a finished stage, and resolves the stages that were waiting for it.
    fn finished(&mut self, stage: usize, done: Done) -> Result<(), StoreError> {
        let next = self.board.finished(stage, done);
        self.publish(stage);
        self.planner.index.save_sometimes();
        self.resolve(next)
    }

    /// Whether the user's files have changed since the key of the stage was computed. What can't be read any more has.
    fn changed_sources(&self, stage: usize, manifest: &Manifest) -> bool {
        let mut sources = self.planner.pipeline.stages[stage].sources.iter();
        sources.any(|(name, path)| {
            let found = source_digest(path, self.planner.index).ok();
            found.is_none() || manifest.sources.get(name) != found.as_ref()
        })
    }
}
