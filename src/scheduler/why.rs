//! Why a stage runs, or ran: its own changes, and where changed inputs come from. Looks into the store and changes nothing.

use std::collections::HashMap;

use serde::Serialize;

use super::{MissReason, Planner, Selection, Verdict};
use crate::store::{Change, Digest, Receipt, StoreError};

/// The answer for one stage, with those for the stages that it depends on as far as they matter.
#[derive(Debug, Serialize)]
pub(crate) struct Why {
    pub(crate) stage: String,
    pub(crate) state: WhyState,
    /// What differs from its last receipt, in words.
    pub(crate) reason: Option<String>,
    /// When it ran last, why, and how long it took.
    pub(crate) last: Option<LastRun>,
    /// What it does now, or how its last try ended.
    pub(crate) now: Option<String>,
    pub(crate) causes: Vec<Why>,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhyState {
    /// Nothing to do.
    Cached,
    /// It would run.
    Runs,
    /// Others run first; then it shows.
    Waits,
    /// It ran, and its content is another than before.
    Changed,
}

/// A run in the past.
#[derive(Debug, Serialize)]
pub(crate) struct LastRun {
    /// Seconds since 1970.
    pub(crate) finished: u64,
    pub(crate) seconds: f64,
    pub(crate) reason: String,
}

impl LastRun {
    fn of(receipt: &Receipt) -> Self {
        let (finished, seconds) = (receipt.timing.finished, receipt.timing.seconds);
        Self { finished, seconds, reason: receipt.reason.clone() }
    }
}

impl Planner<'_> {
    /// Why the stage at `index` would run or does not.
    pub(crate) fn why(&self, index: usize) -> Result<Why, StoreError> {
        let everything = Selection::everything(self.pipeline);
        let verdicts: HashMap<usize, Verdict> = self.plan(&everything)?.into_iter().collect();
        self.explain_verdict(index, &verdicts)
    }

    fn explain_verdict(&self, index: usize, verdicts: &HashMap<usize, Verdict>) -> Result<Why, StoreError> {
        let stage = self.pipeline.stages[index].name.clone();
        let last = self.last_receipt(index)?.as_ref().map(LastRun::of);
        let mut why = Why { stage, state: WhyState::Cached, reason: None, last, now: None, causes: Vec::new() };
        match &verdicts[&index] {
            Verdict::Hit { key } => {
                let receipt = self.store.receipt(*key)?;
                why.last = receipt.as_ref().map(LastRun::of);
                why.causes = receipt.map(|receipt| self.behind_run(index, &receipt)).transpose()?.unwrap_or_default();
            }
            Verdict::Run { key, reason } => {
                why.state = WhyState::Runs;
                why.reason = Some(self.named(index, reason));
                why.now = if self.store.is_being_made(*key) {
                    Some("it is running now".into())
                } else {
                    self.store.failure(*key).map(|message| format!("its last try failed: {message}"))
                };
                if let MissReason::Changed(changes) = reason {
                    why.causes = self.behind(index, changes)?;
                }
            }
            Verdict::After { stages, changes } => {
                why.state = WhyState::Waits;
                let own: Vec<String> = changes.iter().map(ToString::to_string).collect();
                why.reason = Some(own.join("; ")).filter(|reason| !reason.is_empty());
                why.causes =
                    stages.iter().map(|from| self.explain_verdict(*from, verdicts)).collect::<Result<_, _>>()?;
            }
        }
        Ok(why)
    }

    /// Why a stage ran when it ran last, in terms of what it was before that.
    fn behind_run(&self, index: usize, receipt: &Receipt) -> Result<Vec<Why>, StoreError> {
        let before = receipt.previous.map(|key| self.store.receipt(key)).transpose()?.flatten();
        let changes = before.map(|before| receipt.manifest.changes_since(&before.manifest)).unwrap_or_default();
        self.behind(index, &changes)
    }

    /// The reason, with the stages that inputs come from.
    fn named(&self, index: usize, reason: &MissReason) -> String {
        let MissReason::Changed(changes) = reason else { return reason.to_string() };
        let stage = &self.pipeline.stages[index];
        let from = |change: &Change| stage.inputs.get(&change.name).filter(|_| change.group == "input");
        let words = changes.iter().map(|change| match from(change) {
            Some(from) => change.to_string().replacen(
                &change.name,
                &format!("{} ({})", change.name, self.pipeline.stages[*from].name),
                1,
            ),
            None => change.to_string(),
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { reason.to_string() } else { words.join("; ") }
    }

    /// What is behind the changed inputs among `changes` of a stage.
    fn behind(&self, index: usize, changes: &[Change]) -> Result<Vec<Why>, StoreError> {
        let mut causes = Vec::new();
        for change in changes.iter().filter(|change| change.group == "input") {
            let old = change.old.as_deref().and_then(Digest::from_hex);
            if let (Some(from), Some(old)) = (self.pipeline.stages[index].inputs.get(&change.name), old) {
                causes.push(self.changed(*from, old)?);
            }
        }
        Ok(causes)
    }

    /// Why a cached stage has another content than `old`.
    fn changed(&self, index: usize, old: Digest) -> Result<Why, StoreError> {
        let stage = self.pipeline.stages[index].name.clone();
        let now = self.last_receipt(index)?;
        let last = now.as_ref().map(LastRun::of);
        let mut why = Why { stage, state: WhyState::Changed, reason: None, last, now: None, causes: Vec::new() };
        let Some(now) = now else { return Ok(why) };
        // The last of those that made the old content is the one that a person remembers.
        let before = self.store.receipts().filter(|(_, receipt)| receipt.output.digest == old);
        let Some((_, before)) = before.max_by_key(|(_, receipt)| receipt.timing.finished) else { return Ok(why) };
        let changes = now.manifest.changes_since(&before.manifest);
        why.causes = self.behind(index, &changes)?;
        why.reason = Some(self.named(index, &MissReason::Changed(changes)));
        Ok(why)
    }
}
