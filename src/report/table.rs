//! Prints tables with aligned columns. Independent of what the cells mean.

use super::{print::print, style::DIM};

/// Rows of cells below a head. Columns are as wide as needed; those in `right` are aligned to the right.
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        let head: Vec<String> = head.iter().map(ToString::to_string).collect();
        Self { right: vec![false; head.len()], head, rows: Vec::new() }
    }

    /// Aligns these columns to the right.
    #[must_use]
    pub(super) fn right(mut self, columns: &[&str]) -> Self {
        for (name, right) in self.head.iter().zip(&mut self.right) {
            *right = columns.contains(&name.as_str());
        }
        self
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints the table on standard output.
    pub(super) fn print(&self) {
        let (head, rows) = self.lines();
        print(&format!("{DIM}{head}{DIM:#}"));
        for row in rows {
            print(&row);
        }
    }

    /// The width of its lines, in characters.
    pub(super) fn width(&self) -> usize {
        let (head, rows) = self.lines();
        rows.iter().chain([&head]).map(|line| line.chars().count()).max().unwrap_or(0)
    }

    /// The head and the rows as lines.
    fn lines(&self) -> (String, Vec<String>) {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).zip(&self.right).map(|((cell, width), right)| {
                if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
        };
        (line(&self.head), self.rows.iter().map(line).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["stage", "time"]).right(&["time"]);
        table.row(["a".into(), "12 s".into()]);
        table.row(["longer".into(), "3 s".into()]);
        let (head, rows) = table.lines();
        assert_eq!(head, "stage   time");
        assert_eq!(rows, ["a       12 s", "longer   3 s"]);
    }
}
