//! Writes safetensors files atomically, with one tensor in memory at a time. Equal tensors give equal bytes.
//! Independent of models.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    rc::Rc,
};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{Q4F16_LEVELS, Q4F16_SCALES, dtype::dtype_of, finite};
use crate::{
    encoding::{Encoding, q4f16},
    error::{ModelError, Result},
    tensor::Mat,
};

/// A named f32 tensor, whose values are computed when it is written.
pub struct NamedTensor<'a> {
    /// The name in the file.
    pub name: String,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// Whether it is the matrix of a linear or embedding layer.
    matrix: bool,
    values: Box<dyn Fn() -> Cow<'a, [f32]> + 'a>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor with values computed by `values`, row-major.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, values: impl Fn() -> Cow<'a, [f32]> + 'a) -> Self {
        Self { name: name.into(), shape, matrix: false, values: Box::new(values) }
    }

    /// The weight `[rows, cols]` of the linear or embedding layer `layer`, with values computed by `values`.
    pub fn matrix(layer: &str, rows: usize, cols: usize, values: impl Fn() -> Cow<'a, [f32]> + 'a) -> Self {
        Self { matrix: true, ..Self::new(format!("{layer}.weight"), vec![rows, cols], values) }
    }

    /// A vector that borrows its values.
    pub fn vector(name: impl Into<String>, values: &'a [f32]) -> Self {
        Self::new(name, vec![values.len()], move || Cow::Borrowed(values))
    }

    /// The values, row-major.
    pub fn values(&self) -> Cow<'a, [f32]> {
        (self.values)()
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
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

/// A tensor in a file's encoding, computed when it is written.
pub(crate) struct Encoded<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Box<dyn Fn() -> std::result::Result<Vec<u8>, Overflow> + 'a>,
}

/// A value that a type can't hold.
struct Overflow {
    value: f32,
    dtype: Dtype,
}

impl Overflow {
    /// Checks that narrowing `values`, each divided by `divisor`, has made no infinity of any.
    fn check(values: &[f32], divisor: f32, dtype: Dtype, bytes: Vec<u8>) -> std::result::Result<Vec<u8>, Self> {
        // F32 is what values come in, so it can hold all of them.
        if dtype == Dtype::F32 || finite::all_finite(dtype, &bytes) {
            return Ok(bytes);
        }
        let worst = |a: f32, b: f32| if a.is_nan() || a.abs() > b.abs() { a } else { b };
        Err(Self { value: values.iter().copied().fold(0.0, worst) / divisor, dtype })
    }

    fn error(self, file: &Path, tensor: &str) -> ModelError {
        let (kind, largest) = match self.dtype {
            Dtype::BF16 => ("bf16", half::bf16::MAX.to_f32()),
            _ => ("f16", half::f16::MAX.to_f32()),
        };
        ModelError::Overflow { file: file.into(), tensor: tensor.into(), value: self.value, kind, largest }
    }
}

impl<'a> Encoded<'a> {
    fn new(tensor: NamedTensor<'a>, encoding: Encoding, dtype: Dtype) -> Self {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        let bytes = move || {
            let values = tensor.values();
            Overflow::check(&values, 1.0, dtype, encoding.narrow(&values))
        };
        Self { name, dtype, shape, bytes: Box::new(bytes) }
    }

    /// The weight of a linear or embedding layer in 4 bits; any other tensor in f16.
    pub(crate) fn q4f16(tensor: NamedTensor<'a>) -> Vec<Self> {
        let (rows, cols, layer) = match (tensor.shape.as_slice(), tensor.name.strip_suffix(".weight")) {
            ([rows, cols], Some(layer)) if tensor.matrix => (*rows, *cols, layer.to_string()),
            _ => return vec![Self::new(tensor, Encoding::F16, Dtype::F16)],
        };
        let tensor = Rc::new(tensor);
        let shared = Rc::clone(&tensor);
        // Quantized twice, once for each tensor, instead of keeping a whole model in memory until both are written.
        vec![
            Self {
                name: format!("{layer}.{Q4F16_LEVELS}"),
                dtype: Dtype::U32,
                shape: vec![rows, q4f16::words_per_row(cols)],
                bytes: Box::new(move || Ok(q4f16::narrow(&tensor.values(), cols).0)),
            },
            Self {
                name: format!("{layer}.{Q4F16_SCALES}"),
                dtype: Dtype::F16,
                shape: vec![rows, q4f16::scales_per_row(cols)],
                bytes: Box::new(move || {
                    let values = shared.values();
                    Overflow::check(&values, q4f16::ZERO, Dtype::F16, q4f16::narrow(&values, cols).1)
                }),
            },
        ]
    }

    /// Length in the file, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes a safetensors file.
///
/// # Errors
/// If safetensors has no type for `encoding` (ggml's blocks), or the file can't be written.
pub fn write_tensors(path: &Path, tensors: Vec<NamedTensor<'_>>, encoding: Encoding) -> Result<()> {
    let dtype = dtype_of(encoding)
        .ok_or_else(|| ModelError::file(path, format!("a safetensors file can't hold {encoding:?}")))?;
    write_encoded(path, tensors.into_iter().map(|tensor| Encoded::new(tensor, encoding, dtype)).collect())
}

/// Writes length of the header (u64), header (JSON: type, shape and offsets of each tensor) and data, the safetensors
/// format. Wider types come first, so that every tensor is aligned; tensors of one width are sorted by name.
pub(crate) fn write_encoded(path: &Path, mut tensors: Vec<Encoded<'_>>) -> Result<()> {
    tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut end = 0;
    for tensor in &tensors {
        let start = end;
        end += tensor.size();
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(ModelError::io(path))?;
        file.write_all(&header).map_err(ModelError::io(path))?;
        for tensor in &tensors {
            let bytes = (tensor.bytes)().map_err(|overflow| overflow.error(path, &tensor.name))?;
            if bytes.len() != tensor.size() {
                let message = format!("the size of the tensor `{}` does not match its shape", tensor.name);
                return Err(ModelError::file(path, message));
            }
            file.write_all(&bytes).map_err(ModelError::io(path))?;
        }
        Ok(())
    })
}

/// Writes a JSON file, indented.
///
/// # Errors
/// If the file can't be written.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_with(path, |file| writeln!(file, "{value:#}").map_err(ModelError::io(path)))
}

/// Writes the file atomically: to a temporary file in the same folder, which is synced and then renamed.
fn write_with(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let io = || ModelError::io(path);
    let whole = || {
        let mut file = BufWriter::new(File::create(&part).map_err(io())?);
        write(&mut file)?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).map_err(io())?;
        file.sync_all().map_err(io())?;
        std::fs::rename(&part, path).map_err(io())
    };
    let written = whole();
    if matches!(written, Err(ModelError::Overflow { .. })) {
        // What was written so far is of no use; if it can't be removed, the work folder is.
        let _ = std::fs::remove_file(&part);
    }
    written
}
