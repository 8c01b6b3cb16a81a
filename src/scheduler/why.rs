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
        let mut why = Why { stage, state: WhyState::Cached, reason: None, last, causes: Vec::new() };
        match &verdicts[&index] {
            Verdict::Hit { key } => why.last = self.store.receipt(*key)?.as_ref().map(LastRun::of),
            Verdict::Run { reason, .. } => {
                why.state = WhyState::Runs;
                why.reason = Some(reason.to_string());
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
        let mut why = Why {
            stage,
            state: WhyState::Changed,
            reason: None,
            last: now.as_ref().map(LastRun::of),
            causes: Vec::new(),
        };
        let Some(now) = now else { return Ok(why) };
        // The last of those that made the old content is the one that a person remembers.
        let before = self.store.receipts().filter(|(_, receipt)| receipt.output.digest == old);
        let Some((_, before)) = before.max_by_key(|(_, receipt)| receipt.timing.finished) else { return Ok(why) };
        let changes = now.manifest.changes_since(&before.manifest);
        why.causes = self.behind(index, &changes)?;
        why.reason = Some(MissReason::Changed(changes).to_string());
        Ok(why)
    }
}
