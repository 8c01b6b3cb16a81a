//! What a tensor becomes in a file: one tensor in an encoding, or levels and scales in 4 bits. Independent of where in a file, and
//! of the file's format.

use std::path::Path;

use super::{Q4F16_LEVELS, Q4F16_SCALES, finite, named::NamedTensor};
use crate::{
    encoding::{Encoding, q4f16},
    error::ModelError,
};

/// A tensor and its form in a file.
pub(crate) struct Encoded<'a> {
    pub(crate) tensor: NamedTensor<'a>,
    pub(crate) form: Form,
}

/// The form of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One tensor.
    Plain(Encoding),
    /// MLC's two tensors of a matrix.
    Q4f16,
}

/// One of the tensors in a file that a tensor becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: PartKind,
    /// Size of a row of the tensor in this part, in bytes.
    pub(super) row: usize,
    /// Size in bytes.
    pub(crate) bytes: usize,
}

/// The type of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartKind {
    Encoding(Encoding),
    /// Eight levels of 4 bits.
    U32,
}

/// A value that a type can't hold.
pub(super) struct Overflow {
    value: f32,
    encoding: Encoding,
}

impl Overflow {
    /// Checks that narrowing `values`, each divided by `divisor`, has made no infinity of any.
    fn check(values: &[f32], divisor: f32, encoding: Encoding, bytes: Vec<u8>) -> Result<Vec<u8>, Self> {
        // F32 is what values come in, so it can hold all of them.
        if encoding == Encoding::F32 || finite::all_finite(encoding, &bytes) {
            return Ok(bytes);
        }
        let worst = |a: f32, b: f32| if a.is_nan() || a.abs() > b.abs() { a } else { b };
        Err(Self { value: values.iter().copied().fold(0.0, worst) / divisor, encoding })
    }

    pub(super) fn error(self, file: &Path, tensor: &str) -> ModelError {
        let (kind, largest) = match self.encoding {
            Encoding::Bf16 => ("bf16", half::bf16::MAX.to_f32()),
            _ => ("f16", half::f16::MAX.to_f32()),
        };
        ModelError::Overflow { file: file.into(), tensor: tensor.into(), value: self.value, kind, largest }
    }
}

impl<'a> Encoded<'a> {
    /// Any tensor in `encoding`, whose blocks must fill its rows.
    pub(crate) fn plain(tensor: NamedTensor<'a>, encoding: Encoding) -> Self {
        Self { tensor, form: Form::Plain(encoding) }
    }

    /// The weight of a linear or embedding layer in 4 bits; any other tensor in f16.
    pub(crate) fn q4f16(tensor: NamedTensor<'a>) -> Self {
        let form = if tensor.matrix { Form::Q4f16 } else { Form::Plain(Encoding::F16) };
        Self { tensor, form }
    }

    /// Width of what is encoded row by row.
    fn width(&self) -> usize {
        self.tensor.count() / self.tensor.rows().max(1)
    }

    /// The tensors in a file.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let (rows, width) = (self.tensor.rows(), self.width());
        let part = |name: String, shape: Vec<usize>, kind: PartKind, row: usize| Part {
            name,
            shape,
            kind,
            row,
            bytes: row * rows,
        };
        match self.form {
            Form::Plain(encoding) => {
                let block = encoding.block();
                let row = width / block.values * block.bytes;
                vec![part(self.tensor.name.clone(), self.tensor.shape.clone(), PartKind::Encoding(encoding), row)]
            }
            Form::Q4f16 => {
                let layer = self.tensor.name.strip_suffix(".weight").unwrap_or(&self.tensor.name);
                let (words, scales) = (q4f16::words_per_row(width), q4f16::scales_per_row(width));
                let f16 = PartKind::Encoding(Encoding::F16);
                vec![
                    part(format!("{layer}.{Q4F16_LEVELS}"), vec![rows, words], PartKind::U32, 4 * words),
                    part(format!("{layer}.{Q4F16_SCALES}"), vec![rows, scales], f16, 2 * scales),
                ]
            }
        }
    }

    /// The bytes of every part for the rows that `values` fill.
    pub(super) fn encode(&self, values: &[f32]) -> Result<Vec<Vec<u8>>, Overflow> {
        let importance = self.tensor.importance.as_deref();
        match self.form {
            Form::Plain(encoding) => {
                let bytes = encoding.narrow_calibrated(values, importance);
                Ok(vec![Overflow::check(values, 1.0, encoding, bytes)?])
            }
            Form::Q4f16 => {
                let (levels, scales) = q4f16::narrow_calibrated(values, self.width(), importance);
                Ok(vec![levels, Overflow::check(values, q4f16::ZERO, Encoding::F16, scales)?])
            }
        }
    }
}
