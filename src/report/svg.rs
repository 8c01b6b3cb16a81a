//! Draws the graph of stages as SVG. Independent of what the boxes mean, and of where they stand.

use std::fmt::Write;

use crate::view::{BOX, Layout};

/// A stage in a drawing.
pub(super) struct Drawn<'a> {
    pub(super) index: usize,
    pub(super) name: &'a str,
    pub(super) kind: &'static str,
    pub(super) appearance: Appearance,
    pub(super) inputs: Vec<usize>,
}

/// The label and colours of a box.
pub(super) struct Appearance {
    pub(super) word: &'static str,
    pub(super) fill: &'static str,
    pub(super) line: &'static str,
}

/// Draws `stages`, which must come after their inputs. Their indices are below `count`.
pub(super) fn draw(stages: &[Drawn<'_>], count: usize) -> String {
    let layout = Layout::new(stages.iter().map(|stage| (stage.index, stage.inputs.as_slice())), count);
    let (width, height) = layout.size();
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n"
    );
    for stage in stages {
        for from in &stage.inputs {
            let _ =
                writeln!(text, "<path d=\"{}\" fill=\"none\" stroke=\"#9e9e9e\"/>", layout.path(*from, stage.index));
        }
    }
    for Drawn { index, name, kind, appearance: Appearance { word, fill, line }, .. } in stages {
        let (x, y) = layout.corner(*index);
        let _ = writeln!(
            text,
            "<g><title>{name}: {kind}, {word}</title><rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"6\" \
             fill=\"{fill}\" stroke=\"{line}\"/><text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#757575\">{kind}, {word}</text></g>",
            BOX.0,
            BOX.1,
            y + 17.0,
            clipped(name),
            y + 31.0,
            middle = x + BOX.0 / 2.0,
        );
    }
    text + "</svg>\n"
}

/// A name shortened to fit a box.
fn clipped(name: &str) -> String {
    const LONGEST: usize = 26;
    if name.chars().count() <= LONGEST {
        name.into()
    } else {
        name.chars().take(LONGEST - 1).collect::<String>() + "…"
    }
}
