//! A table of published results beside which a kind's own results are shown. Plain data: independent of how a table is
//! drawn and of where results come from.

/// A table of published results.
#[derive(Debug)]
pub struct PublishedTable {
    /// Its name among all tables.
    pub name: &'static str,
    /// Its columns, from left to right.
    pub columns: &'static [Column],
    /// The published models.
    pub rows: &'static [PublishedRow],
    /// What must be said of results in some columns.
    pub notes: &'static [Note],
    /// What must be said of results marked with a star: see [`Shown::partial`].
    pub partial_note: &'static str,
    /// The JSON key of the list of columns with such results.
    pub partial_key: &'static str,
    /// The columns whose mean the publication gives as one figure.
    pub mean_of: &'static [&'static str],
    /// The publication's studies, in these columns.
    pub studies: &'static [Study],
}

/// A study of one choice: each row is a setting, measured by a point of a sweep.
#[derive(Debug)]
pub struct Study {
    /// The name of the sweep's pipeline.
    pub sweep: &'static str,
    /// The sweep, from the root of the repository.
    pub file: &'static str,
    /// The choice.
    pub title: &'static str,
    /// The published settings.
    pub rows: &'static [StudyRow],
    /// What must be said of the published figures.
    pub notes: &'static [&'static str],
}

/// A setting in a study.
#[derive(Debug)]
pub struct StudyRow {
    /// The label of its point in the sweep. If there is no such point, it can't be measured here.
    pub point: &'static str,
    /// Published figures as published, by the name of the column. Not all are known.
    pub cells: &'static [(&'static str, &'static str)],
    /// The published mean over [`PublishedTable::mean_of`].
    pub mean: Option<&'static str>,
}

/// A column, which is also one measurement: a stage fills the cell of its model.
#[derive(Debug)]
pub struct Column {
    /// Its name: [`Shown::column`], and its key in JSON.
    pub name: &'static str,
    /// Its title, as in the publication.
    pub title: &'static str,
    /// The figure of a stage that is shown.
    pub figure: &'static str,
    /// Decimals that are shown.
    pub decimals: usize,
}

/// A published model.
#[derive(Debug)]
pub struct PublishedRow {
    /// Its name.
    pub model: &'static str,
    /// Its results as published, one for each column.
    pub cells: &'static [&'static str],
}

/// A remark below the table, shown if a model of the user has results in one of the columns.
#[derive(Debug)]
pub struct Note {
    /// The names of the columns.
    pub columns: &'static [&'static str],
    /// The remark.
    pub text: &'static str,
}

/// Where the results of a stage are shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// The table.
    pub table: &'static PublishedTable,
    /// The name of the column. If the table has no such column, the model still gets a row.
    pub column: &'static str,
    /// The input that is the measured model, which the row is named after.
    pub model: &'static str,
    /// If that input is not given: the input, or list of inputs, whose stage has the model as an input of that name.
    pub through: &'static str,
    /// Whether the result is of a part of the data only.
    pub partial: bool,
}

impl PublishedTable {
    /// Whether `columns` has all columns of this table.
    pub fn is_filled_by<'a>(&self, columns: impl IntoIterator<Item = &'a str>) -> bool {
        let given: Vec<&str> = columns.into_iter().collect();
        self.columns.iter().all(|column| given.contains(&column.name))
    }
}
