//! Tests which stages are shown in the table, and under which model.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::pipeline::{self, Sources};

const PIPELINE: &str = r#"
name = "p"
[stages.data]
kind = "download"
source = "p.toml"
[stages.imp]
kind = "merge"
model = "data"
[stages.small]
kind = "quantize"
model = "imp"
[stages.pope]
kind = "eval"
benchmark = "pope"
model = "imp"
data = "data"
limit = 3
[stages.pope_again]
kind = "eval"
benchmark = "pope"
model = "imp"
data = "data"
[stages.blind]
kind = "eval"
benchmark = "mme"
model = "imp"
data = "data"
ablate_image = true
[stages.sharded]
kind = "eval"
benchmark = "gqa"
model = "small"
data = "data"
shards = 2
[stages.rescored]
kind = "eval"
benchmark = "custom"
answers = ["sharded-1of2"]
data = "data"
[stages.of_another_program]
kind = "eval"
benchmark = "mmvet"
answers = "data"
data = "data"
[stages.without_figures]
kind = "eval"
benchmark = "vizwiz"
model = "imp"
data = "data"
"#;

#[test]
fn a_row_is_a_model_and_a_cell_is_a_stage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, PIPELINE).unwrap();
    let pipeline = pipeline::load(&file, &[], &mut Sources::default()).unwrap();
    let figures = BTreeMap::from([("accuracy".to_string(), 1.0)]);
    let (none, shard) = (BTreeMap::new(), BTreeMap::new());
    let results = |name: &str| match name {
        "without_figures" => Some(&none),
        "sharded-1of2" | "sharded-2of2" => Some(&shard),
        _ => Some(&figures),
    };
    let rows = model_rows(kinds::tables().next().unwrap(), &pipeline, results);
    let shown: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells =
                row.scores.iter().map(|(name, score)| format!(" {name}{}", if score.partial { "*" } else { "" }));
            format!("{}:{}", row.model, cells.collect::<String>())
        })
        .collect();
    assert_eq!(shown, ["p/imp: pope*", "p/small: custom gqa"]);
}
