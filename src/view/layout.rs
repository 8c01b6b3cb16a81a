//! Places boxes and edges in layers: one column per depth, and a lane for each edge that passes a column, so that no edge runs behind
//! a box. Independent of what the boxes mean and of how they are drawn.

use std::{collections::HashMap, fmt::Write};

/// Width and height of a box.
pub(crate) const BOX: (f64, f64) = (170.0, 40.0);
const GAP: (f64, f64) = (46.0, 16.0);
/// The height of a lane, including the space to the next one.
const LANE: f64 = 14.0;

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

/// The coordinates of all items.
pub(crate) struct Layout {
    /// The column of each stage.
    column: Vec<usize>,
    columns: usize,
    height: f64,
    /// The middle of each item.
    y: HashMap<Item, f64>,
}

impl Layout {
    /// Places the boxes, each given by its index and the indices of its inputs, which come before it. Indices are below `count`.
    pub(crate) fn new<'a>(boxes: impl Iterator<Item = (usize, &'a [usize])>, count: usize) -> Self {
        let mut column = vec![0; count];
        // The items of each column, each with the items that lead to it.
        let mut columns: Vec<Vec<(Item, Vec<Item>)>> = Vec::new();
        for (index, inputs) in boxes {
            let depth = inputs.iter().map(|from| column[*from] + 1).max().unwrap_or(0);
            column[index] = depth;
            columns.resize_with(columns.len().max(depth + 1), Vec::new);
            let mut before = Vec::new();
            for from in inputs {
                let mut last = Item::Stage(*from);
                for (passed, items) in columns.iter_mut().enumerate().take(depth).skip(column[*from] + 1) {
                    let lane = Item::Lane { from: *from, to: index, column: passed };
                    items.push((lane, vec![last]));
                    last = lane;
                }
                before.push(last);
            }
            columns[depth].push((Item::Stage(index), before));
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

    /// The width and height of everything.
    pub(crate) fn size(&self) -> (f64, f64) {
        (left(self.columns) - GAP.0 + GAP.1, self.height + GAP.1)
    }

    /// The left upper corner of a box.
    pub(crate) fn corner(&self, index: usize) -> (f64, f64) {
        (left(self.column[index]), self.y[&Item::Stage(index)] - BOX.1 / 2.0)
    }

    /// The path of SVG from the right edge of a box to the left edge of another, whatever stands between them.
    pub(crate) fn straight_path(&self, from: usize, to: usize) -> String {
        let [(x, y), (to_x, to_y)] = [self.corner(from), self.corner(to)];
        format!("M{},{} L{to_x},{}", x + BOX.0, y + BOX.1 / 2.0, to_y + BOX.1 / 2.0)
    }

    /// The path of SVG from the right edge of a box through its lanes to the left edge of another.
    pub(crate) fn path(&self, from: usize, to: usize) -> String {
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
