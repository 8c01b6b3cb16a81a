//! Explains why a stage ran or would run: its own changes, and the origin of changed inputs. Reads the store and changes nothing.

use std::collections::{HashMap, HashSet};

use imp_stages::contract::device::Environment;
use serde::Serialize;

use super::{MissReason, Planner, Selection, Verdict};
use crate::store::{Change, Digest, FieldGroup, Receipt, StoreError};

/// The explanation for one stage, with explanations for the inputs that caused it.
#[derive(Debug, Serialize)]
pub(crate) struct Why {
    pub(crate) stage: String,
    pub(crate) state: WhyState,
    /// What differs from its last receipt, in words.
    pub(crate) reason: Option<String>,
    /// When it last ran, why, and how long it took.
    pub(crate) last: Option<LastRun>,
    /// What it is doing now, or how its last attempt ended.
    pub(crate) now: Option<String>,
    /// Whether a run is making it now. In JSON, `now` says so.
    #[serde(skip)]
    pub(crate) is_running: bool,
    pub(crate) causes: Vec<Why>,
}

/// The state of an explained stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhyState {
    /// Nothing to do.
    Cached,
    /// It would run.
    Runs,
    /// Its inputs run first; what they produce decides.
    Waits,
    /// It ran and produced different content.
    Changed,
}

/// A run in the past.
#[derive(Debug, Serialize)]
pub(crate) struct LastRun {
    /// Seconds since 1970.
    pub(crate) finished: u64,
    pub(crate) seconds: f64,
    pub(crate) reason: String,
    /// What it computed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) environment: Option<Environment>,
    /// The remote cache that the result came from, if this machine did not make it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pulled_from: Option<String>,
}

impl LastRun {
    fn of(receipt: &Receipt) -> Self {
        let (finished, seconds) = (receipt.timing.finished, receipt.timing.seconds);
        Self {
            finished,
            seconds,
            reason: receipt.reason.clone(),
            environment: receipt.environment.clone(),
            pulled_from: receipt.origin.as_ref().map(|origin| origin.from.clone()),
        }
    }
}

impl Planner<'_> {
    /// Explains why the stage at `index` would run, or why it is cached.
    pub(crate) fn why(&self, index: usize) -> Result<Why, StoreError> {
        let everything = Selection::everything(self.pipeline);
        let verdicts = self.plan(&everything)?.into_iter().collect();
        Explainer { planner: self, verdicts, seen: HashSet::new(), makers: None }.verdict(index)
    }
}

/// The reason given for a stage that was already explained.
const ABOVE: &str = "as above";

/// Explains each stage in full only once, since many stages may depend on it.
struct Explainer<'p> {
    planner: &'p Planner<'p>,
    verdicts: HashMap<usize, Verdict>,
    seen: HashSet<usize>,
    /// The newest receipt for each content, read when first needed.
    makers: Option<HashMap<Digest, Receipt>>,
}

impl Explainer<'_> {
    /// Explains the verdict on a stage.
    fn verdict(&mut self, index: usize) -> Result<Why, StoreError> {
        let again = !self.seen.insert(index);
        let stage = self.planner.pipeline.stages[index].name.clone();
        let last = self.planner.last_receipt(index)?.as_ref().map(LastRun::of);
        let mut why = Why {
            stage,
            state: WhyState::Cached,
            reason: None,
            last,
            now: None,
            is_running: false,
            causes: Vec::new(),
        };
        let verdict = self.verdicts[&index].clone();
        match &verdict {
            Verdict::Hit { key } => {
                let receipt = self.planner.store.receipt(*key)?;
                why.last = receipt.as_ref().map(LastRun::of);
                why.causes =
                    receipt.map(|receipt| self.causes_of_run(index, &receipt)).transpose()?.unwrap_or_default();
            }
            // Whoever asks why is told of this machine; what is elsewhere has no history here.
            Verdict::Remote { .. } => {}
            Verdict::Run { key, reason } => {
                why.state = WhyState::Runs;
                why.reason = Some(self.reason_text(index, reason));
                why.is_running = self.planner.store.is_being_made(*key);
                why.now = if why.is_running {
                    Some("it is running now".into())
                } else {
                    let work = self.planner.store.work(*key);
                    let failure = work.failure().map(|message| format!("its last try failed: {message}"));
                    let stopped = || work.has_checkpoint().then(|| "it resumes from its checkpoint".into());
                    failure.or_else(stopped)
                };
                if let MissReason::Changed(changes) = reason {
                    why.causes = self.causes(index, changes)?;
                }
            }
            Verdict::After { stages, changes } => {
                why.state = WhyState::Waits;
                let own: Vec<String> = changes.iter().map(ToString::to_string).collect();
                why.reason = Some(own.join("; ")).filter(|reason| !reason.is_empty());
                if again {
                    why.reason = Some(ABOVE.into());
                    return Ok(why);
                }
                why.causes = stages.iter().map(|from| self.verdict(*from)).collect::<Result<_, _>>()?;
            }
        }
        Ok(why)
    }

    /// Explains the inputs that changed between the receipt of a stage and its previous one.
    fn causes_of_run(&mut self, index: usize, receipt: &Receipt) -> Result<Vec<Why>, StoreError> {
        let before = receipt.previous.map(|key| self.planner.store.receipt(key)).transpose()?.flatten();
        let changes = before.map(|before| receipt.manifest.changes_since(&before.manifest)).unwrap_or_default();
        self.causes(index, &changes)
    }

    /// The reason as text, with the names of the stages that changed inputs come from.
    fn reason_text(&self, index: usize, reason: &MissReason) -> String {
        let MissReason::Changed(changes) = reason else { return reason.to_string() };
        let stage = &self.planner.pipeline.stages[index];
        let from = |change: &Change| stage.inputs.get(&change.name).filter(|_| change.group == FieldGroup::Input);
        let texts = changes.iter().map(|change| match from(change) {
            Some(from) => {
                let name = format!("{} ({})", change.name, self.planner.pipeline.stages[*from].name);
                Change { name, ..change.clone() }.to_string()
            }
            None => change.to_string(),
        });
        let texts: Vec<String> = texts.collect();
        if texts.is_empty() { reason.to_string() } else { texts.join("; ") }
    }

    /// Explains the changed inputs among `changes` of a stage.
    fn causes(&mut self, index: usize, changes: &[Change]) -> Result<Vec<Why>, StoreError> {
        let mut causes = Vec::new();
        for change in changes.iter().filter(|change| change.group == FieldGroup::Input) {
            let old = change.old.as_deref().and_then(Digest::from_hex);
            if let (Some(from), Some(old)) = (self.planner.pipeline.stages[index].inputs.get(&change.name), old) {
                causes.push(self.explain_change(*from, old)?);
            }
        }
        Ok(causes)
    }

    /// Explains why a cached stage has different content than `old`.
    fn explain_change(&mut self, index: usize, old: Digest) -> Result<Why, StoreError> {
        let stage = self.planner.pipeline.stages[index].name.clone();
        let now = self.planner.last_receipt(index)?;
        let last = now.as_ref().map(LastRun::of);
        let mut why = Why {
            stage,
            state: WhyState::Changed,
            reason: None,
            last,
            now: None,
            is_running: false,
            causes: Vec::new(),
        };
        let Some(now) = now else { return Ok(why) };
        if !self.seen.insert(index) {
            why.reason = Some(ABOVE.into());
            return Ok(why);
        }
        let Some(before) = self.maker_of(old) else { return Ok(why) };
        let changes = now.manifest.changes_since(&before.manifest);
        why.causes = self.causes(index, &changes)?;
        why.reason = Some(self.reason_text(index, &MissReason::Changed(changes)));
        Ok(why)
    }

    /// The newest receipt with this content.
    fn maker_of(&mut self, content: Digest) -> Option<Receipt> {
        let store = self.planner.store;
        let makers = self.makers.get_or_insert_with(|| {
            let mut receipts: Vec<Receipt> = store.receipts().map(|(_, receipt)| receipt).collect();
            receipts.sort_by_key(|receipt| receipt.timing.finished);
            receipts.into_iter().map(|receipt| (receipt.output.digest, receipt)).collect()
        });
        makers.get(&content).cloned()
    }
}
