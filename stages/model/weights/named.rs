//! Tensors by name, whose values are computed when they are written, a few rows at a time. Independent of files.

use std::{borrow::Cow, ops::Range, sync::Arc};

use crate::tensor::Mat;

/// Values that are computed and encoded at a time.
const PIECE: usize = 1 << 20;

type Whole<'a> = dyn Fn() -> Cow<'a, [f32]> + Send + Sync + 'a;
type Rows<'a> = dyn Fn(Range<usize>) -> Cow<'a, [f32]> + Send + Sync + 'a;

/// A named f32 tensor, whose values are computed when it is written.
pub struct NamedTensor<'a> {
    /// The name in the file.
    pub name: String,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// Whether it is the matrix of a linear or embedding layer.
    pub(crate) matrix: bool,
    /// How much the error in each column of a matrix matters, if that is known.
    pub(crate) importance: Option<Arc<[f32]>>,
    source: Source<'a>,
}

enum Source<'a> {
    /// All values at once.
    Whole(Box<Whole<'a>>),
    /// The values of some rows.
    Rows(Box<Rows<'a>>),
}

impl<'a> NamedTensor<'a> {
    /// A tensor with values computed by `values`, row-major.
    pub fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        values: impl Fn() -> Cow<'a, [f32]> + Send + Sync + 'a,
    ) -> Self {
        Self { name: name.into(), shape, matrix: false, importance: None, source: Source::Whole(Box::new(values)) }
    }

    /// A matrix `[rows, cols]`; `values` computes those of some rows.
    pub fn by_rows(
        name: impl Into<String>,
        rows: usize,
        cols: usize,
        values: impl Fn(Range<usize>) -> Cow<'a, [f32]> + Send + Sync + 'a,
    ) -> Self {
        let (shape, source) = (vec![rows, cols], Source::Rows(Box::new(values)));
        Self { name: name.into(), shape, matrix: false, importance: None, source }
    }

    /// The weight `[rows, cols]` of the linear or embedding layer `layer`; `values` computes those of some rows.
    pub fn matrix(
        layer: &str,
        rows: usize,
        cols: usize,
        values: impl Fn(Range<usize>) -> Cow<'a, [f32]> + Send + Sync + 'a,
    ) -> Self {
        Self { matrix: true, ..Self::by_rows(format!("{layer}.weight"), rows, cols, values) }
    }

    /// A vector that borrows its values.
    pub fn vector(name: impl Into<String>, values: &'a [f32]) -> Self {
        Self::new(name, vec![values.len()], move || Cow::Borrowed(values))
    }

    /// A tensor of which every value is `value`.
    pub fn constant(name: impl Into<String>, shape: Vec<usize>, value: f32) -> Self {
        let count = shape.iter().product();
        Self::new(name, shape, move || vec![value; count].into())
    }

    /// The same tensor with another name.
    pub(crate) fn renamed(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// The same tensor, with what is known of its columns.
    pub(crate) fn weighing(self, importance: Option<Arc<[f32]>>) -> Self {
        Self { importance, ..self }
    }

    /// The rows of several tensors of the same width, or the values of several vectors, one after the other. The first says whether it
    /// is a matrix of a layer, and what matters in it: layers in one matrix have the same input.
    pub(crate) fn stacked(name: String, mut parts: Vec<Self>) -> Self {
        if parts.len() == 1
            && let Some(one) = parts.pop()
        {
            return one.renamed(name);
        }
        let width = parts.first().map_or(0, |first| first.shape[1..].iter().product());
        let (matrix, rows) =
            (parts.first().is_some_and(|first| first.matrix), parts.iter().map(|part| part.shape[0]).sum());
        let importance = parts.first().and_then(|first| first.importance.clone());
        if parts.iter().any(|part| matches!(part.source, Source::Whole(_))) {
            let all = move || parts.iter().flat_map(|part| part.values().into_owned()).collect::<Vec<f32>>().into();
            return Self::new(name, vec![rows], all);
        }
        let values = move |wanted: Range<usize>| {
            let (mut start, mut values) = (0, Vec::with_capacity(wanted.len() * width));
            for part in &parts {
                let end = start + part.shape[0];
                let own = wanted.start.clamp(start, end) - start..wanted.end.clamp(start, end) - start;
                if !own.is_empty() {
                    values.extend_from_slice(&part.piece(own));
                }
                start = end;
            }
            Cow::Owned(values)
        };
        Self { matrix, importance, ..Self::by_rows(name, rows, width, values) }
    }

    /// A small table `[rows, cols]` as the matrix of an embedding layer.
    pub(crate) fn into_matrix(self) -> Self {
        let (name, rows, width) = (self.name.clone(), self.shape[0], self.count() / self.shape[0].max(1));
        let values = move |rows: Range<usize>| Cow::Owned(self.values()[rows.start * width..rows.end * width].to_vec());
        Self { matrix: true, ..Self::by_rows(name, rows, width, values) }
    }

    /// The tensor with rows of zeros up to `rows`, unless it has as many.
    pub(crate) fn padded(mut self, rows: usize) -> Self {
        let (has, width) = (self.shape[0], self.count() / self.shape[0].max(1));
        if has >= rows {
            return self;
        }
        let shape = [&[rows], &self.shape[1..]].concat();
        let source = std::mem::replace(&mut self.source, Source::Whole(Box::new(Cow::default)));
        let fill = move |mut values: Vec<f32>, count: usize| {
            values.resize(count * width, 0.0);
            Cow::Owned(values)
        };
        let source = match source {
            Source::Whole(values) => Source::Whole(Box::new(move || fill(values().into_owned(), rows))),
            Source::Rows(values) => Source::Rows(Box::new(move |wanted| {
                let there = wanted.start.min(has)..wanted.end.min(has);
                fill(values(there).into_owned(), wanted.len())
            })),
        };
        Self { shape, source, ..self }
    }

    /// The values, row-major.
    pub fn values(&self) -> Cow<'a, [f32]> {
        self.piece(0..self.rows())
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The rows that can be computed one by one: those of a matrix, or the whole of anything else.
    pub(super) fn rows(&self) -> usize {
        match self.source {
            Source::Whole(_) => 1,
            Source::Rows(_) => self.shape[0],
        }
    }

    /// Rows that are computed together, so many that a piece is neither tiny nor large.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.rows();
        let row = self.count() / rows.max(1);
        let step = (PIECE / row.max(1)).max(1);
        (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
    }

    /// The values of some rows.
    pub(crate) fn piece(&self, rows: Range<usize>) -> Cow<'a, [f32]> {
        match &self.source {
            Source::Whole(values) => values(),
            Source::Rows(values) => values(rows),
        }
    }
}

/// Tensors with the values of a matrix.
impl<'a> NamedTensor<'a> {
    /// With the shape of the matrix.
    pub fn of_mat(name: impl Into<String>, mat: &'a Mat) -> Self {
        Self::shaped(name, vec![mat.rows(), mat.cols()], mat)
    }

    /// As a vector.
    pub fn flat(name: impl Into<String>, mat: &'a Mat) -> Self {
        Self::shaped(name, vec![mat.count()], mat)
    }

    /// With a different shape for the same number of values.
    pub fn shaped(name: impl Into<String>, shape: Vec<usize>, mat: &'a Mat) -> Self {
        Self::new(name, shape, || mat.to_host())
    }
}
