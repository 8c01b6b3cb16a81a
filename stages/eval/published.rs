//! The table of the Imp paper: nine benchmarks, and the published models. Data only.

use super::config::BenchmarkName::{self, Gqa, Mmbench, Mme, Mmvet, Pope, Scienceqa, Textvqa, Vizwiz, Vqav2};
use crate::contract::published::{Column, Note, PublishedRow, PublishedTable};

impl BenchmarkName {
    /// Its column: the name under which a configuration has it.
    pub(super) const fn column(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Gqa => "gqa",
            Self::Mmbench => "mmbench",
            Self::Mme => "mme",
            Self::Mmvet => "mmvet",
            Self::Pope => "pope",
            Self::Scienceqa => "scienceqa",
            Self::Textvqa => "textvqa",
            Self::Vizwiz => "vizwiz",
            Self::Vqav2 => "vqav2",
        }
    }
}

const fn column(benchmark: BenchmarkName, figure: &'static str, title: &'static str) -> Column {
    Column { name: benchmark.column(), title, figure, decimals: 2 }
}

const fn row(model: &'static str, cells: &'static [&'static str; 9]) -> PublishedRow {
    PublishedRow { model, cells }
}

/// What the paper and LLaVA report (arXiv 2405.12107 and the README of MILVLG/imp).
pub(super) static TABLE: PublishedTable = PublishedTable {
    name: "imp",
    columns: &[
        column(Vqav2, "accuracy", "VQAv2"),
        column(Gqa, "accuracy", "GQA"),
        column(Vizwiz, "accuracy", "VizWiz"),
        column(Scienceqa, "img_accuracy", "SQA-IMG"),
        column(Textvqa, "accuracy", "TextVQA"),
        column(Pope, "f1", "POPE"),
        Column { decimals: 1, ..column(Mme, "perception", "MME-P") },
        column(Mmbench, "circular", "MMB"),
        Column { decimals: 1, ..column(Mmvet, "total", "MM-Vet") },
    ],
    rows: &[
        row("LLaVA-1.5-lora-7B", &["79.10", "63.00", "47.80", "68.40", "58.20", "86.40", "1476.9", "66.10", "30.2"]),
        row("Imp-v1-3B", &["79.45", "58.55", "50.09", "69.96", "59.38", "88.02", "1434.0", "66.49", "33.1"]),
        row("Imp-v1.5-2B", &["79.2", "61.93", "39.16", "66.14", "54.52", "86.74", "1304.8", "56.95", "33.5"]),
        row("Imp-v1.5-3B", &["81.18", "63.54", "54.13", "72.78", "59.84", "88.87", "1446.4", "72.94", "43.3"]),
        row("Imp-v1.5-4B", &["81.46", "63.51", "51.16", "78.28", "60.16", "86.86", "1507.7", "73.28", "44.6"]),
    ],
    notes: &[Note {
        columns: &[Vqav2.column(), Vizwiz.column()],
        text: "VQAv2 and VizWiz: this run's on the public validation splits, the published ones on the test servers' splits",
    }],
    partial_note: "* on the first questions only (`limit`)",
    partial_key: "on_first_questions_only",
    // Their mean for Imp-v1.5-3B is 73.2, as the report says.
    mean_of: &[Vqav2.column(), Gqa.column(), Scienceqa.column(), Textvqa.column(), Pope.column(), Mmbench.column()],
    studies: super::study::STUDIES,
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::figures::FIGURES, *};
    use crate::contract::figure::{Better, Figure, Role};

    #[test]
    fn columns_are_benchmarks_and_their_headlines() {
        for column in TABLE.columns {
            let benchmark: BenchmarkName = serde_json::from_value(column.name.into()).unwrap();
            assert_eq!(benchmark.column(), column.name);
            let figure = Figure::find(FIGURES, column.figure).unwrap();
            assert_eq!((figure.better, figure.role), (Better::Higher, Role::Headline), "{}", column.figure);
        }
        assert!(TABLE.rows.iter().all(|row| row.cells.len() == TABLE.columns.len()));
    }
}
