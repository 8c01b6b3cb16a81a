//! The studies of the Imp paper (arXiv 2405.12107v2), each with the sweep that repeats it. Data only.

use super::config::BenchmarkName::{Gqa, Mmbench, Pope, Scienceqa, Textvqa, Vqav2};
use crate::contract::published::{Study, StudyRow};

/// Where the figures come from.
const TABLE_1: &str = "published: table 1 of arXiv 2405.12107v2";
const TABLE_4: &str = "published: table 4 of arXiv 2405.12107v2";

/// A row of table 1: its columns in its order, and their mean.
macro_rules! row {
    ($point:literal, $vqav2:literal $gqa:literal $textvqa:literal $sqa:literal $pope:literal $mmb:literal, $mean:literal) => {
        StudyRow {
            point: $point,
            cells: &[
                (Vqav2.column(), $vqav2),
                (Gqa.column(), $gqa),
                (Textvqa.column(), $textvqa),
                (Scienceqa.column(), $sqa),
                (Pope.column(), $pope),
                (Mmbench.column(), $mmb),
            ],
            mean: Some($mean),
        }
    };
}

/// A row of table 4.
macro_rules! precision {
    ($point:literal, $sqa:literal $mmb:literal) => {
        StudyRow { point: $point, cells: &[(Scienceqa.column(), $sqa), (Mmbench.column(), $mmb)], mean: None }
    };
}

const fn unknown(point: &'static str) -> StudyRow {
    StudyRow { point, cells: &[], mean: None }
}

/// Tables 1 and 4 of the paper. Each section of table 1 goes on from what the one before it has chosen.
pub(super) const STUDIES: &[Study] = &[
    Study {
        sweep: "imp-llm",
        file: "pipelines/sweeps/llm.toml",
        title: "language model",
        rows: &[
            row!("vicuna-7b", "79.1" "63.0" "58.2" "68.4" "86.4" "66.1", "70.2"),
            row!("mobilellama-2.7b", "76.0" "60.6" "49.9" "58.7" "87.0" "58.4", "65.1"),
            row!("phi-2", "76.5" "57.2" "52.3" "69.8" "87.2" "68.6", "68.6"),
            unknown("qwen1.5-1.8b"),
            unknown("phi-3-mini"),
        ],
        notes: &["vicuna-7b is LLaVA-1.5-7B itself; the sweep leaves it out", TABLE_1],
    },
    Study {
        sweep: "imp-vision-encoder",
        file: "pipelines/sweeps/vision_encoder.toml",
        title: "vision encoder",
        rows: &[
            row!("clip-vit-l-336", "76.5" "57.2" "52.3" "69.8" "87.2" "68.6", "68.6"),
            row!("in1k-vit-l-336", "67.5" "55.2" "38.1" "63.1" "83.2" "50.5", "59.6"),
            row!("siglip-so400m", "79.9" "62.9" "57.9" "70.3" "87.8" "69.4", "71.4"),
        ],
        notes: &["in1k-vit-l-336 was trained to classify ImageNet-1K; imp-flow has no such encoder", TABLE_1],
    },
    Study {
        sweep: "imp-finetuning",
        file: "pipelines/sweeps/finetuning.toml",
        title: "how to finetune",
        rows: &[
            row!("full", "79.3" "61.8" "57.1" "70.9" "87.4" "70.5", "71.2"),
            row!("lora-128", "79.9" "62.9" "57.9" "70.3" "87.8" "69.4", "71.4"),
            row!("lora-256", "79.9" "63.0" "57.9" "71.0" "87.8" "70.0", "71.6"),
            row!("lora-512", "80.0" "62.6" "57.4" "71.2" "87.7" "70.4", "71.5"),
        ],
        notes: &[TABLE_1],
    },
    Study {
        sweep: "imp-epochs",
        file: "pipelines/sweeps/epochs.toml",
        title: "epochs of finetuning",
        rows: &[
            row!("epochs=1", "79.9" "63.0" "57.9" "71.0" "87.8" "70.0", "71.6"),
            row!("epochs=2", "81.2" "63.8" "59.4" "71.2" "87.8" "69.3", "72.1"),
            row!("epochs=3", "81.5" "64.0" "57.7" "70.0" "87.5" "69.7", "71.7"),
        ],
        notes: &[TABLE_1],
    },
    Study {
        sweep: "imp-data",
        file: "pipelines/sweeps/data.toml",
        title: "data of finetuning",
        rows: &[
            row!("665k", "81.2" "63.8" "59.4" "71.2" "87.8" "69.3", "72.1"),
            row!("643k", "81.2" "64.2" "54.6" "69.5" "87.9" "70.4", "71.3"),
            row!("675k", "81.2" "63.9" "57.6" "71.0" "87.6" "69.6", "71.8"),
            row!("705k", "81.2" "64.1" "58.5" "73.2" "88.0" "70.4", "72.6"),
            row!("1m", "81.2" "63.5" "59.8" "72.8" "88.9" "72.9", "73.2"),
        ],
        notes: &[
            "665k: LLaVA's conversations; 643k: without TextCaps; 675k: with 32,000 records of text and charts; 705k: with 30,000 captions by \
             GPT-4V; 1m: with 300,000 conversations by GPT-4V. Which records of the public sets were drawn is not published, so the sweep \
             runs the first two",
            TABLE_1,
        ],
    },
    Study {
        sweep: "imp-precision",
        file: "pipelines/sweeps/precision.toml",
        title: "bits of a weight",
        rows: &[
            precision!("16-bit", "73.13" "71.05"),
            precision!("8-bit", "73.03" "71.05"),
            precision!("4-bit", "72.88" "70.88"),
        ],
        notes: &["published: with llama.cpp, whose 4 bits the report doesn't name; here they are q4_k_m", TABLE_4],
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

    /// What was copied wrongly would hardly have the published mean.
    #[test]
    fn means_are_those_of_their_cells() {
        let rows: Vec<_> = STUDIES.iter().flat_map(|study| study.rows).filter(|row| row.mean.is_some()).collect();
        assert_eq!(rows.len(), 18);
        for row in rows {
            let cells: Vec<f64> = row.cells.iter().filter_map(|(_, cell)| cell.parse().ok()).collect();
            let mean = row.mean.and_then(|mean| mean.parse::<f64>().ok()).unwrap_or_default();
            assert!(cells.len() == 6 && (cells.iter().sum::<f64>() / 6.0 - mean).abs() < 0.051, "{row:?}");
        }
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
