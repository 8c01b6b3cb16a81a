//! Writing safetensors files, one tensor in memory at a time, whole or not at all. The same tensors give the
//! same bytes. Knows nothing of models.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{ModelError, Result};

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// Half precision, as the published checkpoints.
    #[default]
    F16,
}

impl DType {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// A tensor in f32 with its name, whose values are made when they are asked for.
pub struct NamedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    values: Box<dyn Fn() -> Cow<'a, [f32]> + 'a>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor whose values are computed by `values`, as many as `shape` says.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, values: impl Fn() -> Cow<'a, [f32]> + 'a) -> Self {
        Self { name: name.into(), shape, values: Box::new(values) }
    }

    /// A tensor whose values exist.
    pub fn of(name: impl Into<String>, shape: Vec<usize>, values: &'a [f32]) -> Self {
        Self::new(name, shape, move || Cow::Borrowed(values))
    }

    /// A vector whose values exist.
    pub fn vector(name: impl Into<String>, values: &'a [f32]) -> Self {
        Self::of(name, vec![values.len()], values)
    }

    /// Its values, row by row.
    pub fn values(&self) -> Cow<'a, [f32]> {
        (self.values)()
    }

    /// How many values it has.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A tensor as a file has it.
pub(crate) struct Encoded<'a> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Box<dyn Fn() -> Vec<u8> + 'a>,
}

impl<'a> Encoded<'a> {
    pub(crate) fn floats(tensor: NamedTensor<'a>, dtype: DType) -> Self {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        let (encoded, bytes): (_, Box<dyn Fn() -> Vec<u8>>) = match dtype {
            DType::F32 => (Dtype::F32, Box::new(move || encode(&tensor.values(), f32::to_le_bytes))),
            DType::F16 => {
                (Dtype::F16, Box::new(move || encode(&tensor.values(), |value| f16::from_f32(value).to_le_bytes())))
            }
        };
        Self { name, dtype: encoded, shape, bytes }
    }

    /// Its length in the file.
    pub(crate) fn size(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

fn encode<const N: usize>(values: &[f32], bytes_of: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    const CHUNK: usize = 1 << 14;
    let mut bytes = vec![0; values.len() * N];
    bytes.par_chunks_mut(CHUNK * N).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| {
        for (bytes, value) in bytes.chunks_exact_mut(N).zip(values) {
            bytes.copy_from_slice(&bytes_of(*value));
        }
    });
    bytes
}

/// Writes a safetensors file.
pub fn write_tensors(path: &Path, tensors: Vec<NamedTensor<'_>>, dtype: DType) -> Result<()> {
    write_encoded(path, tensors.into_iter().map(|tensor| Encoded::floats(tensor, dtype)).collect())
}

/// The format: length of the header (u64), the header (JSON: type, shape and place of each tensor), the data.
/// Wide types come first, so that every tensor is aligned, then names in their order.
pub(crate) fn write_encoded(path: &Path, mut tensors: Vec<Encoded<'_>>) -> Result<()> {
    tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut end = 0;
    for tensor in &tensors {
        let start = end;
        end += tensor.size();
        let place = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), place);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in &tensors {
            let bytes = (tensor.bytes)();
            if bytes.len() != tensor.size() {
                let message = format!("the tensor `{}` has another size than its shape", tensor.name);
                return Err(std::io::Error::other(message));
            }
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// Writes a JSON file for people.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_with(path, |file| writeln!(file, "{value:#}"))
}

/// Writes the whole file or none of it: to a name beside it, flushed to the disk, then renamed.
fn write_with(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let whole = || {
        let mut file = BufWriter::new(File::create(&part)?);
        write(&mut file)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&part, path)
    };
    whole().map_err(ModelError::io(path))
}
