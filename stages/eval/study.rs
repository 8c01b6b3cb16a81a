//! The studies of the Imp paper, each with the sweep that repeats it. Data only.

use super::config::BenchmarkName::{Pope, Scienceqa, Textvqa, Vqav2};
use crate::contract::published::{Study, StudyRow};

/// Where the figures come from.
const SOURCE: &str = "published: table 1 of arXiv 2405.12107, second-hand: as public notes on it quote it";

const VQAV2: &str = Vqav2.column();
const TEXTVQA: &str = Textvqa.column();
const SQA: &str = Scienceqa.column();
const POPE: &str = Pope.column();

const fn mean(point: &'static str, mean: &'static str) -> StudyRow {
    StudyRow { point, cells: &[], mean: Some(mean) }
}

const fn unknown(point: &'static str) -> StudyRow {
    StudyRow { point, cells: &[], mean: None }
}

/// Table 1 of the paper.
pub(super) const STUDIES: &[Study] = &[
    Study {
        sweep: "imp-llm",
        file: "pipelines/sweeps/llm.toml",
        title: "language model",
        rows: &[
            mean("mobilellama-2.7b", "65.1"),
            mean("phi-2", "68.6"),
            unknown("qwen1.5-1.8b"),
            unknown("phi-3-mini"),
        ],
        notes: &[
            "the sweep has Imp's final recipe; the report chose the language model first, and what it trained with then was not the same",
            SOURCE,
        ],
    },
    Study {
        sweep: "imp-vision-encoder",
        file: "pipelines/sweeps/vision_encoder.toml",
        title: "vision encoder",
        rows: &[unknown("clip-vit-l-336"), unknown("siglip-so400m")],
        notes: &["no published figure of this study was at hand"],
    },
    Study {
        sweep: "imp-finetuning",
        file: "pipelines/sweeps/finetuning.toml",
        title: "how to finetune",
        rows: &[mean("full", "71.2"), mean("lora-128", "71.4"), mean("lora-256", "71.6"), mean("lora-512", "71.5")],
        notes: &[SOURCE],
    },
    Study {
        sweep: "imp-epochs",
        file: "pipelines/sweeps/epochs.toml",
        title: "epochs of finetuning",
        rows: &[
            StudyRow {
                cells: &[(VQAV2, "79.9"), (TEXTVQA, "57.9"), (SQA, "71.0"), (POPE, "87.8")],
                ..mean("epochs=1", "71.6")
            },
            StudyRow {
                cells: &[(VQAV2, "81.2"), (TEXTVQA, "59.4"), (SQA, "71.2"), (POPE, "87.8")],
                ..mean("epochs=2", "72.1")
            },
            StudyRow {
                cells: &[(VQAV2, "81.5"), (TEXTVQA, "57.7"), (SQA, "70.0"), (POPE, "87.5")],
                ..mean("epochs=3", "71.7")
            },
        ],
        notes: &[SOURCE],
    },
    Study {
        sweep: "imp-data",
        file: "pipelines/sweeps/data.toml",
        title: "data of finetuning",
        rows: &[mean("without-gpt4v", "71.8"), mean("with-gpt4v", "73.2"), unknown("half"), unknown("all")],
        notes: &[
            "the report adds sets of text and charts, then 330,000 records that GPT-4V annotated: its mixture is not published, so only \
             LLaVA's part runs here",
            SOURCE,
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::{super::published::TABLE, *};

    #[test]
    fn figures_are_numbers_in_columns_of_the_table() {
        let is_column = |name: &str| TABLE.columns.iter().any(|column| column.name == name);
        for row in STUDIES.iter().flat_map(|study| study.rows) {
            assert!(row.cells.iter().all(|(column, cell)| is_column(column) && cell.parse::<f64>().is_ok()), "{row:?}");
            assert!(row.mean.is_none_or(|mean| mean.parse::<f64>().is_ok()), "{row:?}");
        }
        assert!(TABLE.mean_of.iter().all(|name| is_column(name)));
    }

    /// The columns of the mean are those whose mean in the table is the mean that the report gives for its last row.
    #[test]
    fn the_mean_is_the_report_s() {
        let imp = TABLE.rows.iter().find(|row| row.model == "Imp-v1.5-3B").map(|row| row.cells);
        let cells = TABLE.columns.iter().zip(imp.into_iter().flatten());
        let averaged: Vec<f64> = cells
            .filter(|(column, _)| TABLE.mean_of.contains(&column.name))
            .filter_map(|(_, cell)| cell.parse().ok())
            .collect();
        assert_eq!(averaged.len(), 6);
        assert!((averaged.iter().sum::<f64>() / 6.0 - 73.2).abs() < 0.05);
    }
}
