//! Draws boxes and edges in layers: one column per depth, and a lane for each edge that passes a column, so that no edge runs behind
//! a box. Independent of what the boxes mean.

use std::{collections::HashMap, fmt::Write};

const BOX: (f64, f64) = (170.0, 40.0);
const GAP: (f64, f64) = (60.0, 16.0);
/// The height of a lane, including the space to the next one.
const LANE: f64 = 14.0;

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

/// An item in a column: a stage, or the lane of an edge between two stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Stage(usize),
    Lane { from: usize, to: usize, column: usize },
}

impl Item {
    fn height(self) -> f64 {
        if matches!(self, Self::Stage(_)) { BOX.1 + GAP.1 } else { LANE }
    }
}

/// Draws `stages`, which must come after their inputs. Their indices are below `count`.
pub(super) fn draw(stages: &[Drawn<'_>], count: usize) -> String {
    let layout = Layout::new(stages, count);
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
        let (x, y) = (left(layout.column[*index]), layout.y[&Item::Stage(*index)] - BOX.1 / 2.0);
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

/// The coordinates of all items.
struct Layout {
    /// The column of each stage.
    column: Vec<usize>,
    columns: usize,
    height: f64,
    /// The middle of each item.
    y: HashMap<Item, f64>,
}

impl Layout {
    fn new(stages: &[Drawn<'_>], count: usize) -> Self {
        let mut column = vec![0; count];
        // The items of each column, each with the items that lead to it.
        let mut columns: Vec<Vec<(Item, Vec<Item>)>> = Vec::new();
        for Drawn { index, inputs, .. } in stages {
            let depth = inputs.iter().map(|from| column[*from] + 1).max().unwrap_or(0);
            column[*index] = depth;
            columns.resize_with(columns.len().max(depth + 1), Vec::new);
            let mut before = Vec::new();
            for from in inputs {
                let mut last = Item::Stage(*from);
                for (passed, items) in columns.iter_mut().enumerate().take(depth).skip(column[*from] + 1) {
                    let lane = Item::Lane { from: *from, to: *index, column: passed };
                    items.push((lane, vec![last]));
                    last = lane;
                }
                before.push(last);
            }
            columns[depth].push((Item::Stage(*index), before));
        }
        let height_of = |items: &[(Item, Vec<Item>)]| items.iter().map(|(item, _)| item.height()).sum::<f64>();
        let height = columns.iter().map(|items| height_of(items)).fold(0.0, f64::max);
        let mut y: HashMap<Item, f64> = HashMap::new();
        for items in &mut columns {
            // Sort items by the height of those that lead to them, which keeps edges short.
            items.sort_by_cached_key(|(_, before)| {
                let sum: f64 = before.iter().map(|item| y[item]).sum();
                (sum / before.len().max(1) as f64) as u64
            });
            let mut top = GAP.1 / 2.0 + (height - height_of(items)) / 2.0;
            for (item, _) in items {
                y.insert(*item, top + item.height() / 2.0);
                top += item.height();
            }
        }
        Self { columns: columns.len(), column, height, y }
    }

    fn size(&self) -> (f64, f64) {
        (left(self.columns) - GAP.0 + GAP.1, self.height + GAP.1)
    }

    /// From the right edge of a stage through its lanes to the left edge of another.
    fn path(&self, from: usize, to: usize) -> String {
        let (mut x, mut y) = (left(self.column[from]) + BOX.0, self.y[&Item::Stage(from)]);
        let mut path = format!("M{x},{y}");
        for column in self.column[from] + 1..=self.column[to] {
            let item = if column == self.column[to] { Item::Stage(to) } else { Item::Lane { from, to, column } };
            let (next_x, next_y) = (left(column), self.y[&item]);
            let middle = f64::midpoint(x, next_x);
            let _ = write!(path, " C{middle},{y} {middle},{next_y} {next_x},{next_y}");
            (x, y) = (next_x + BOX.0, next_y);
            if column < self.column[to] {
                let _ = write!(path, " H{x}");
            }
        }
        path
    }
}

/// The left edge of a column.
fn left(column: usize) -> f64 {
    GAP.1 + column as f64 * (BOX.0 + GAP.0)
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
