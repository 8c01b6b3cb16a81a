//! Warnings about a result stay with it.

use std::{thread::sleep, time::Duration};

use crate::support::Space;

const CUT: &str = "\
[stages.shapes]
kind = \"download\"
source = \"builtin:shapes\"
images = 4
eval_images = 1
[stages.phi]
kind = \"download\"
source = \"builtin:tiny-phi\"
model = { hidden_size = 16, layers = 1, heads = 2 }
[stages.captions]
kind = \"preprocess\"
data = \"shapes\"
tokenizer = \"phi\"
annotations = \"pretrain.json\"
template = \"plain\"
max_length = 6
";

#[test]
fn a_warning_about_a_result_is_told_whenever_the_result_is_used() {
    let space = Space::new();
    space.write("p.toml", CUT);
    // The third run finds the note that the second has written, and does not look at the stages.
    for run in 1..=3 {
        let output = space.succeed(&["run", "p.toml"]);
        let told = output.stderr.clone() + &output.stdout;
        assert_eq!(told.matches("lost labels, because they were cut at `max_length` = 6").count(), 1, "run {run}: {told}");
        sleep(Duration::from_millis(2100));
    }
    let shown = space.succeed(&["show", "p/captions"]).stdout;
    assert!(shown.contains("warnings") && shown.contains("lost labels"), "{shown}");
    assert!(shown.contains("cut 4"), "{shown}");
}
