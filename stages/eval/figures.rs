//! The final figures of all benchmarks.

use crate::contract::figure::{
    Better::{Higher, Neither},
    Figure,
};

/// The name of any part that only the user's files know.
const ANY: &str = "*";

/// Shares are in per cent, also those of POPE, whose official script reports fractions.
pub(super) const FIGURES: &[Figure] = &[
    Figure::headline("accuracy", Higher, "%"),
    // GQA: questions with the answer yes or no, and others.
    Figure::detail("binary", Higher, "%"),
    Figure::detail("open", Higher, "%"),
    // ScienceQA: questions with an image.
    Figure::headline("img_accuracy", Higher, "%"),
    // POPE: the means of its three sets, then each set.
    Figure::headline("f1", Higher, "%"),
    Figure::detail("yes_ratio", Neither, "%"),
    Figure::detail("*_f1", Higher, "%"),
    Figure::detail("*_accuracy", Higher, "%"),
    // MME.
    Figure::headline("perception", Higher, "points"),
    Figure::detail("cognition", Higher, "points"),
    // MMBench: right in every rotation of the options, and right in the first.
    Figure::headline("circular", Higher, "%"),
    Figure::detail("vanilla", Higher, "%"),
    // MM-Vet.
    Figure::headline("total", Higher, "%"),
    // VQAv2 and VizWiz: the answer types. MM-Vet: the capabilities.
    Figure::detail("yes_no", Higher, "%"),
    Figure::detail("number", Higher, "%"),
    Figure::detail("other", Higher, "%"),
    Figure::detail("unanswerable", Higher, "%"),
    Figure::detail("rec", Higher, "%"),
    Figure::detail("ocr", Higher, "%"),
    Figure::detail("know", Higher, "%"),
    Figure::detail("gen", Higher, "%"),
    Figure::detail("spat", Higher, "%"),
    Figure::detail("math", Higher, "%"),
    Figure::detail(ANY, Higher, "%"),
];

/// Fails if a figure of an official benchmark is missing above.
#[cfg(test)]
pub(super) fn assert_declared(scores: &super::question::Scores) {
    for (name, _) in &scores.figures {
        assert!(Figure::find(FIGURES, name).is_some_and(|figure| figure.name != ANY), "{name} is not declared");
    }
}
