//! What the card of a pushed result says: from receipts only. Independent of how it is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use imp_stages::{contract::secret::hide_secrets, push::Repository};

use super::session::Session;
use crate::{
    failure::Failure,
    report::{self, Card, CardScore, CardSource, CardStep},
    scheduler::{Selection, Verdict},
    store::Receipt,
};

/// The text of the card of a stage's result.
pub(super) fn of(session: &Session, index: usize, receipt: &Receipt, to: &Repository) -> Result<String, Failure> {
    let receipts = receipts(session)?;
    let above = above(session, index);
    let name = |stage: usize| session.pipeline.stages[stage].name.as_str();
    let (mut sources, mut steps, mut scores, mut missing) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for &stage in session.graph.order().iter().filter(|stage| above.contains(stage)) {
        let Some(receipt) = receipts.get(&stage) else { continue };
        match receipt.manifest.config.get("source").and_then(|source| source.as_str()) {
            Some(source) => sources.push(CardSource {
                stage: name(stage),
                source: hide_secrets(source).into_owned(),
                digest: receipt.output.digest,
                licence: session.store.input_folder(receipt.output.digest)?.into_parts().0.and_then(|at| licence(&at)),
            }),
            None => steps.push(CardStep { stage: name(stage), receipt }),
        }
        for user in session.graph.users(stage).filter(|user| is_score(session, *user, stage)) {
            match receipts.get(&user) {
                Some(score) => scores.push(CardScore { stage: name(user), of: name(stage), results: &score.results }),
                None => missing += 1,
            }
        }
    }
    let document = hide_secrets(&session.document.to_toml()).into_owned();
    let files = session.store.tree(receipt.output.digest)?;
    let files: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let card = Card {
        repository: to,
        pipeline: &session.pipeline.name,
        stage: name(index),
        receipt,
        model_type: model_type(session, receipt)?,
        files,
        sources,
        steps,
        scores,
        missing,
        document,
    };
    Ok(report::card(&card))
}

/// The receipts of all stages that are up to date, by index.
fn receipts(session: &Session) -> Result<BTreeMap<usize, Receipt>, Failure> {
    let mut receipts = BTreeMap::new();
    for (index, verdict) in session.planner().plan(&Selection::everything(&session.pipeline))? {
        if let Verdict::Hit { key } = verdict
            && let Some(receipt) = session.store.receipt(key)?
        {
            receipts.insert(index, receipt);
        }
    }
    Ok(receipts)
}

/// A stage and all that it was made from.
fn above(session: &Session, index: usize) -> BTreeSet<usize> {
    let (mut found, mut next) = (BTreeSet::new(), vec![index]);
    while let Some(stage) = next.pop() {
        if found.insert(stage) {
            next.extend(session.graph.inputs(stage));
        }
    }
    found
}

/// Whether the results of a stage are scores of another: those that a table of published results shows.
fn is_score(session: &Session, stage: usize, of: usize) -> bool {
    let stage = &session.pipeline.stages[stage];
    let model = stage.shown.as_ref().and_then(|shown| stage.inputs.get(shown.model));
    model == Some(&of) && stage.part_of.is_none()
}

/// The type in the result's `config.json`, if it is a model.
fn model_type(session: &Session, receipt: &Receipt) -> Result<Option<String>, Failure> {
    let Some(folder) = session.store.input_folder(receipt.output.digest)?.into_parts().0 else { return Ok(None) };
    let config = fs::read(folder.join("config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(config.and_then(|config| Some(config.get("model_type")?.as_str()?.to_string())))
}

/// The licence that the card of a downloaded repository names at its head.
fn licence(folder: &Path) -> Option<String> {
    let card = fs::read_to_string(folder.join("README.md")).ok()?;
    let head = card.strip_prefix("---\n")?.split("\n---").next()?;
    let value = |key: &str| {
        let value = head.lines().find_map(|line| line.strip_prefix(key))?.trim().trim_matches(['"', '\'']);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
        Some(value.to_string()).filter(|value| !value.is_empty() && value.chars().all(is_name))
    };
    value("license_name:").or_else(|| value("license:"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_licence_is_that_of_the_head() {
        let folder = tempfile::tempdir().unwrap();
        for (card, wanted) in [
            ("---\nlicense: mit\n---\nlicense: other", Some("mit")),
            ("---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n", Some("tongyi-qianwen")),
            ("---\nlicense: 'apache-2.0'\n---\n", Some("apache-2.0")),
            ("---\nlicense: [mit, x]\n---\n", None),
            ("---\ntags: x\n---\nlicense: mit", None),
            ("license: mit", None),
        ] {
            fs::write(folder.path().join("README.md"), card).unwrap();
            assert_eq!(licence(folder.path()).as_deref(), wanted, "{card}");
        }
    }
}
