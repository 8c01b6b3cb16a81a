//! What the card of a pushed result says: from receipts only. Independent of how it is written.

use std::{collections::BTreeSet, fs, path::Path};

use imp_stages::{contract::secret::hide_secrets, push::Repository};

use super::session::Session;
use crate::{
    failure::Failure,
    report::{self, Card, CardScore, CardSource, CardStep, HIDDEN, Licence},
    scheduler::{Selection, Verdict},
    store::{Digest, Receipt},
};

/// The text of the card of a stage's result. `is_present` if that is the result of the stage's present configuration.
pub(super) fn of(
    session: &Session,
    index: usize,
    receipt: &Receipt,
    to: &Repository,
    is_present: bool,
) -> Result<String, Failure> {
    let lineage = lineage(session, receipt);
    let (mut sources, mut steps) = (Vec::new(), Vec::new());
    for receipt in &lineage {
        match receipt.manifest.config.get("source").and_then(|source| source.as_str()) {
            Some(source) => sources.push(CardSource {
                stage: &receipt.stage,
                source: hide_secrets(source).into_owned(),
                digest: receipt.output.digest,
                licence: session.store.input_folder(receipt.output.digest)?.into_parts().0.and_then(|at| licence(&at)),
            }),
            None => steps.push(CardStep { stage: &receipt.stage, receipt }),
        }
    }
    let evaluations = evaluations(session)?;
    let (mut scores, mut missing) = (Vec::new(), 0);
    for (stage, of, receipt) in &evaluations {
        // What was measured is told by its content: the stage may have another result by now.
        let measured = receipt.as_ref().and_then(|receipt| {
            let model = lineage.iter().find(|made| {
                receipt.manifest.inputs.values().any(|input| *input == made.output.digest && made.stage == *of)
            })?;
            Some(CardScore { stage, of: &model.stage, results: &receipt.results })
        });
        match measured {
            Some(score) => scores.push(score),
            None => missing += usize::from(lineage.iter().any(|made| made.stage == *of)),
        }
    }
    let files = session.store.tree(receipt.output.digest)?;
    let files: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let card = Card {
        repository: to,
        pipeline: &session.pipeline.name,
        stage: &session.pipeline.stages[index].name,
        receipt,
        model_type: model_type(session, receipt)?,
        files,
        sources,
        steps,
        scores,
        missing,
        document: is_present.then(|| document(session)),
    };
    Ok(report::card(&card))
}

/// The receipts of a result and of all that it was made from, in the order in which it was made. Found by the contents of inputs, so
/// that they are of this very result.
fn lineage(session: &Session, result: &Receipt) -> Vec<Receipt> {
    let made: Vec<Receipt> = session.store.receipts().map(|(_, receipt)| receipt).collect();
    let mut lineage = vec![result.clone()];
    let mut at = 0;
    while let Some(receipt) = lineage.get(at) {
        let maker = |input: &Digest| {
            let makers = made.iter().filter(|maker| maker.output.digest == *input);
            // Others may have made the same bytes.
            makers.max_by_key(|maker| (maker.pipeline == result.pipeline, maker.timing.finished)).cloned()
        };
        let makers: Vec<Receipt> = receipt.manifest.inputs.values().filter_map(maker).collect();
        let known = |lineage: &[Receipt], maker: &Receipt| lineage.iter().any(|known| known.key() == maker.key());
        for maker in makers {
            if !known(&lineage, &maker) {
                lineage.push(maker);
            }
        }
        at += 1;
    }
    lineage.sort_by_key(|receipt| receipt.timing.finished);
    lineage
}

/// Each evaluation whose results a table of published results shows: its name, that of the stage that it measures, and its receipt.
fn evaluations(session: &Session) -> Result<Vec<(String, String, Option<Receipt>)>, Failure> {
    let mut evaluations = Vec::new();
    for (index, verdict) in session.planner().plan(&Selection::everything(&session.pipeline))? {
        let stage = &session.pipeline.stages[index];
        let model = stage.shown.as_ref().and_then(|shown| stage.inputs.get(shown.model));
        let Some(model) = model.filter(|_| stage.part_of.is_none()) else { continue };
        let receipt = if let Verdict::Hit { key } = verdict { session.store.receipt(key)? } else { None };
        evaluations.push((stage.name.clone(), session.pipeline.stages[*model].name.clone(), receipt));
    }
    Ok(evaluations)
}

/// The pipeline as a file, without what may be secret: passwords and tokens in addresses, and values of environments.
fn document(session: &Session) -> String {
    let text = hide_secrets(&session.document.to_toml()).into_owned();
    let Ok(mut document) = text.parse::<toml::Table>() else { return String::new() };
    let stages = document.get_mut("stages").and_then(toml::Value::as_table_mut);
    for stage in stages.into_iter().flat_map(|stages| stages.iter_mut()).filter_map(|(_, stage)| stage.as_table_mut()) {
        let environment = stage.get_mut("environment").and_then(toml::Value::as_table_mut);
        for (_, value) in environment.into_iter().flat_map(|environment| environment.iter_mut()) {
            *value = HIDDEN.into();
        }
    }
    toml::to_string_pretty(&document).unwrap_or_default()
}

/// The type in the result's `config.json`, if it is a model.
fn model_type(session: &Session, receipt: &Receipt) -> Result<Option<String>, Failure> {
    let Some(folder) = session.store.input_folder(receipt.output.digest)?.into_parts().0 else { return Ok(None) };
    let config = fs::read(folder.join("config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(config.and_then(|config| Some(config.get("model_type")?.as_str()?.to_string())))
}

/// The licence that the card of a downloaded repository names at its head.
fn licence(folder: &Path) -> Option<Licence> {
    let card = fs::read_to_string(folder.join("README.md")).ok()?;
    let head = card.strip_prefix("---\n")?.split("\n---").next()?;
    let value = |key: &str| {
        let value = head.lines().find_map(|line| line.strip_prefix(key))?.trim().trim_matches(['"', '\'']);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
        Some(value.to_string()).filter(|value| !value.is_empty() && value.chars().all(is_name))
    };
    Some(Licence { id: value("license:")?, name: value("license_name:") })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_licence_is_that_of_the_head() {
        let folder = tempfile::tempdir().unwrap();
        for (card, wanted) in [
            ("---\nlicense: mit\n---\nlicense: other", Some(("mit", None))),
            ("---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n", Some(("other", Some("tongyi-qianwen")))),
            ("---\nlicense: 'apache-2.0'\n---\n", Some(("apache-2.0", None))),
            ("---\nlicense: [mit, x]\n---\n", None),
            ("---\ntags: x\n---\nlicense: mit", None),
            ("license: mit", None),
        ] {
            fs::write(folder.path().join("README.md"), card).unwrap();
            let found = licence(folder.path());
            let found = found.as_ref().map(|licence| (licence.id.as_str(), licence.name.as_deref()));
            assert_eq!(found, wanted, "{card}");
        }
    }
}
