//! The card (README.md) of a pushed result, in Markdown with the head that hubs read. Independent of where its facts come from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use imp_stages::push::Repository;
use serde_json::{Value, json};

use super::{foreign::one_line, units};
use crate::store::{Digest, Receipt};

/// Stands in each card that a push may replace.
pub(crate) const CARD_MARK: &str =
    "<!-- Written by imp-flow, and written anew by each push. Remove this line to keep your changes. -->";

/// What a card says.
pub(crate) struct Card<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) pipeline: &'a str,
    pub(crate) stage: &'a str,
    pub(crate) receipt: &'a Receipt,
    /// The type in its `config.json`.
    pub(crate) model_type: Option<String>,
    /// The names of its files.
    pub(crate) files: BTreeSet<&'a str>,
    pub(crate) sources: Vec<CardSource<'a>>,
    pub(crate) steps: Vec<CardStep<'a>>,
    pub(crate) scores: Vec<CardScore<'a>>,
    /// Evaluations without a result.
    pub(crate) missing: usize,
    /// The pipeline that makes it, as a file, if that is known.
    pub(crate) document: Option<String>,
}

/// Something that it was made from.
pub(crate) struct CardSource<'a> {
    pub(crate) stage: &'a str,
    pub(crate) source: String,
    pub(crate) digest: Digest,
    /// The licence that its own card names.
    pub(crate) licence: Option<Licence>,
}

/// A licence as hubs know it: an identifier, and a name if that is `other`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Licence {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
}

/// Stands for what may be secret.
pub(crate) const HIDDEN: &str = "<hidden>";

/// A stage that it was made by.
pub(crate) struct CardStep<'a> {
    pub(crate) stage: &'a str,
    pub(crate) receipt: &'a Receipt,
}

/// An evaluation, and the stage whose result it evaluated.
pub(crate) struct CardScore<'a> {
    pub(crate) stage: &'a str,
    pub(crate) of: &'a str,
    pub(crate) results: &'a BTreeMap<String, f64>,
}

/// The text of a card.
pub(crate) fn card(card: &Card<'_>) -> String {
    let mut text = format!("---\n{}---\n{CARD_MARK}\n\n", head(card));
    let name = card.repository.to_string();
    let name = name.trim_start_matches("hf://").split('@').next().unwrap_or_default();
    let _ = writeln!(
        text,
        "# {name}\n\nA small multimodal language model: the result of the stage `{}` of the pipeline `{}`, made with imp-flow {}.\n",
        cell(card.stage),
        cell(card.pipeline),
        cell(&card.receipt.made_by)
    );
    for part in [usage(card, name), scores(card), sources(card), steps(card), cautions(card)] {
        text += &part;
    }
    let Some(document) = &card.document else { return text };
    let fence = "`".repeat(longest_run(document).max(2) + 1);
    let _ = write!(
        text,
        "## Make it again\n\nSave this as `pipeline.toml` and run `imp-flow run pipeline.toml`. Files of your own that it names are not \
         part of it.\n\n<details><summary>The pipeline</summary>\n\n{fence}toml\n{}\n{fence}\n\n</details>\n",
        document.trim_end()
    );
    text
}

/// The longest run of backticks in a text, which a fence around it must exceed.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or_default()
}

/// A text from elsewhere in a line or a cell of a table.
fn cell(text: &str) -> String {
    let mut safe = String::new();
    for c in one_line(text).chars() {
        match c {
            '<' => safe += "&lt;",
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

/// The head, in which each value is JSON, and so YAML.
fn head(card: &Card<'_>) -> String {
    let repository = |source: &CardSource<'_>, prefix: &str| {
        let name = source.source.strip_prefix(prefix)?.split('@').next()?;
        Some(name.to_string()).filter(|name| prefix == DATASETS || !name.starts_with("datasets/"))
    };
    let named = |prefix| card.sources.iter().filter_map(|source| repository(source, prefix)).collect::<BTreeSet<_>>();
    let (models, data) = (named("hf://"), named(DATASETS));
    let licences: BTreeSet<Option<&Licence>> = card
        .sources
        .iter()
        .filter(|source| repository(source, "hf://").is_some())
        .map(|source| source.licence.as_ref())
        .collect();
    let library = match card.model_type.as_deref() {
        Some("llava") => Some("transformers"),
        _ if card.files.contains("model.gguf") => Some("gguf"),
        _ => None,
    };
    let mut head = Vec::new();
    // Several licences, or one that is not known, are for a person to weigh.
    let mut licences = licences.into_iter();
    if let (Some(Some(licence)), None) = (licences.next(), licences.next()) {
        head.push(("license", json!(licence.id)));
        head.extend(licence.name.as_ref().map(|name| ("license_name", json!(name))));
    }
    head.extend(library.map(|library| ("library_name", json!(library))));
    head.push(("pipeline_tag", json!("image-text-to-text")));
    head.push(("tags", json!(["imp", "imp-flow"])));
    if !models.is_empty() {
        head.push(("base_model", json!(models)));
    }
    if !data.is_empty() {
        head.push(("datasets", json!(data)));
    }
    if let Some(index) = model_index(card) {
        head.push(("model-index", index));
    }
    head.into_iter().fold(String::new(), |text, (key, value)| text + key + ": " + &value.to_string() + "\n")
}

const DATASETS: &str = "hf://datasets/";

/// The scores of this very result, for the tables of a hub.
fn model_index(card: &Card<'_>) -> Option<Value> {
    let own = card.scores.iter().filter(|score| score.of == card.stage);
    let results: Vec<Value> = own
        .map(|score| {
            let metrics: Vec<Value> =
                score.results.iter().map(|(name, value)| json!({"type": name, "value": value})).collect();
            let dataset = json!({"name": score.stage, "type": score.stage});
            json!({"task": {"type": "image-text-to-text"}, "dataset": dataset, "metrics": metrics})
        })
        .collect();
    (!results.is_empty()).then(|| json!([{"name": card.stage, "results": results}]))
}

fn usage(card: &Card<'_>, name: &str) -> String {
    let program = if card.files.contains("model.gguf") {
        format!(
            "With llama.cpp (give it square images):\n\n```sh\nhf download {name} --local-dir model\n\
             llama-mtmd-cli -m model/model.gguf --mmproj model/mmproj.gguf --image photo.jpg -p \"What is this?\"\n```\n"
        )
    } else if card.model_type.as_deref() == Some("llava") {
        format!(
            "With transformers:\n\n```python\nfrom transformers import pipeline\n\nask = pipeline(\"image-text-to-text\", model=\"{name}\")\n\
             ask(text=[{{\"role\": \"user\", \"content\": [{{\"type\": \"image\", \"url\": \"photo.jpg\"}}, \
             {{\"type\": \"text\", \"text\": \"What is this?\"}}]}}])\n```\n"
        )
    } else {
        format!(
            "With imp-flow:\n\n```sh\nhf download {name} --local-dir model\nimp-flow ask model \"What is this?\" --image photo.jpg\n```\n"
        )
    };
    format!("## Use\n\n{program}\n")
}

fn scores(card: &Card<'_>) -> String {
    if card.scores.is_empty() && card.missing == 0 {
        return "## Scores\n\nThis pipeline does not evaluate it.\n\n".into();
    }
    let mut text = String::from("## Scores\n\nMeasured by imp-flow.\n\n| evaluation | of | figures |\n|---|---|---|\n");
    for score in &card.scores {
        let figures: Vec<String> =
            score.results.iter().map(|(name, value)| format!("{} {}", cell(name), units::figure(*value))).collect();
        let _ = writeln!(text, "| {} | {} | {} |", cell(score.stage), cell(score.of), figures.join(", "));
    }
    if card.missing > 0 {
        let _ = writeln!(
            text,
            "\n{} of the pipeline had not run when this was pushed.",
            units::count(card.missing, "evaluation")
        );
    }
    text + "\n"
}

fn sources(card: &Card<'_>) -> String {
    let mut text = String::from(
        "## Made from\n\nIts licence follows from these.\n\n| stage | source | licence in its card | content (BLAKE3) |\n|---|---|---|---|\n",
    );
    for source in &card.sources {
        let licence = source.licence.as_ref().map(|licence| licence.name.as_ref().unwrap_or(&licence.id).as_str());
        let licence = licence.unwrap_or("not found");
        let (stage, from) = (cell(source.stage), cell(&source.source));
        let _ = writeln!(text, "| {stage} | {from} | {} | `{}` |", cell(licence), source.digest.short());
    }
    text + "\n"
}

fn steps(card: &Card<'_>) -> String {
    let mut text = String::from("## Made by\n\n| stage | kind | time | on |\n|---|---|---|---|\n");
    for CardStep { stage, receipt } in &card.steps {
        let (kind, took) = (cell(&receipt.manifest.kind), units::duration(receipt.timing.seconds));
        let on = receipt.environment.as_ref().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "| {} | {kind} | {took} | {} |", cell(stage), cell(&on));
    }
    text.push('\n');
    for CardStep { stage, receipt } in &card.steps {
        let _ = writeln!(text, "<details><summary>Settings and figures of {}</summary>\n", cell(stage));
        for (key, value) in receipt.manifest.config_fields() {
            let value = if key.starts_with("environment.") { HIDDEN } else { &value };
            let _ = writeln!(text, "- {} = {}", cell(&key), cell(value));
        }
        let _ = writeln!(text, "- seed = {}\n", receipt.manifest.seed);
        for (name, value) in &receipt.results {
            let _ = writeln!(text, "- {}: {}", cell(name), units::figure(*value));
        }
        text += "\n</details>\n\n";
    }
    text
}

fn cautions(card: &Card<'_>) -> String {
    if card.receipt.cautions.is_empty() {
        return String::new();
    }
    let lines = card.receipt.cautions.iter().map(|caution| format!("- {}\n", cell(caution)));
    format!("## To know\n\n{}\n", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{Manifest, Product, Provenance, TreeRef};

    fn receipt(caution: &str) -> Receipt {
        let manifest = Manifest {
            kind: "merge".into(),
            version: 1,
            seed: 3,
            config: json!({"text": "a|b</summary>\n# no"}),
            sources: BTreeMap::new(),
            inputs: BTreeMap::new(),
        };
        let provenance = Provenance {
            manifest,
            pipeline: "p".into(),
            stage: "s".into(),
            reason: String::new(),
            previous: None,
            made_by: "0.1.0".into(),
        };
        let mut product = Product::of(TreeRef::default());
        product.cautions = vec![caution.into()];
        Receipt::new(provenance, product)
    }

    fn text(licences: &[Option<&str>], document: &str) -> String {
        let (repository, receipt) = (Repository::parse("hf://me/imp").unwrap(), receipt("<script>\n- x"));
        let results = BTreeMap::from([("accuracy".to_string(), 83.25)]);
        let sources = licences.iter().enumerate().map(|(number, licence)| CardSource {
            stage: "llm",
            source: format!("hf://owner/base{number}@main"),
            digest: Digest::of(b"x"),
            licence: licence.map(|id| Licence { id: id.into(), name: None }),
        });
        let data =
            CardSource { stage: "data", source: "hf://datasets/a/b".into(), digest: Digest::of(b"y"), licence: None };
        card(&Card {
            repository: &repository,
            pipeline: "p",
            stage: "s",
            receipt: &receipt,
            model_type: Some("llava".into()),
            files: BTreeSet::new(),
            sources: sources.chain([data]).collect(),
            steps: vec![CardStep { stage: "s", receipt: &receipt }],
            scores: vec![
                CardScore { stage: "pope", of: "s", results: &results },
                CardScore { stage: "pope", of: "before", results: &results },
            ],
            missing: 2,
            document: Some(document.into()),
        })
    }

    #[test]
    fn the_head_names_what_is_certain() {
        let head = |licences: &[Option<&str>]| text(licences, "").split("\n---\n").next().unwrap().to_string();
        let same = head(&[Some("mit"), Some("mit")]);
        assert!(same.starts_with("---\nlicense: \"mit\"\nlibrary_name: \"transformers\"\n"), "{same}");
        assert!(same.contains("base_model: [\"owner/base0\",\"owner/base1\"]\ndatasets: [\"a/b\"]\n"), "{same}");
        // Only its own scores are for the tables of a hub.
        assert_eq!(same.matches("\"value\":83.25").count(), 1);
        for licences in [&[Some("mit"), Some("apache-2.0")][..], &[Some("mit"), None], &[None]] {
            assert!(!head(licences).contains("license"), "{licences:?}");
        }
    }

    #[test]
    fn texts_from_elsewhere_stay_text() {
        let text = text(&[None], "a = \"\"\"\n```\n````\n</details>\n\"\"\"");
        assert!(text.contains("- text = \"a\\|b&lt;/summary>\\\\n# no\""), "{text}");
        assert!(text.contains("- &lt;script>\\\\n- x\n"), "{text}");
        // A longer fence than any in the pipeline.
        assert_eq!(text.matches("`````").count(), 2, "{text}");
        assert!(text.contains("2 evaluations of the pipeline had not run") && text.contains(CARD_MARK));
    }
}
