//! Named tensors in safetensors files and those of `torch.save`: memory-mapped for reading, written one at a time (safetensors only).
//! Independent of models, whose names and shapes come from the caller.

mod dtype;
mod finite;
mod format;
mod legacy_names;
mod named;
mod pickle;
mod sources;
mod stream;
mod write;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

pub(crate) use format::{Encoded, Part, PartKind};
pub use named::NamedTensor;
pub(crate) use sources::set_of;
pub use sources::{beside, either, is_weights, looks_like, missing_shards, unreadable_weights};
pub(crate) use stream::{Placed, Spot, Target, write_bytes, write_files};
pub(crate) use write::write_sharded;
pub use write::{write_json, write_tensors};

use sources::Source;

use crate::{
    encoding::{Encoding, q4f16},
    error::{ModelError, Result},
    mmap::Map,
    tensor::{Bytes, Mat, Stored, Weight},
};

/// MLC's names of the two tensors of a `q4f16_1` matrix, after the layer's name.
const Q4F16_LEVELS: &str = "q_weight";
const Q4F16_SCALES: &str = "q_scale";
/// The file of a model's weights, if they are in one.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The list of files, if they are in several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a folder, or of one file.
pub struct TensorFiles {
    path: PathBuf,
    tensors: HashMap<String, Entry>,
    /// The names that a model has requested or accepted.
    used: RefCell<HashSet<String>>,
}

/// A tensor in a file.
pub(crate) struct Entry {
    pub(crate) file: Arc<PathBuf>,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Bytes,
}

/// The type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Numbers(Encoding),
    Other(Dtype),
}

impl Entry {
    /// Part `index` of `count` equal parts along the first axis.
    fn part(&self, index: usize, count: usize) -> Self {
        let (mut shape, size) = (self.shape.clone(), self.bytes.get().len() / count);
        if let Some(rows) = shape.first_mut() {
            *rows /= count;
        }
        let bytes = self.bytes.part(index * size..(index + 1) * size);
        Self { file: self.file.clone(), kind: self.kind, shape, bytes }
    }

    /// Some rows: indices along the first axis, which has as many.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let mut shape = self.shape.clone();
        let all = std::mem::replace(&mut shape[0], rows.len());
        let row = self.bytes.get().len() / all.max(1);
        let bytes = self.bytes.part(rows.start * row..rows.end * row);
        Self { file: self.file.clone(), kind: self.kind, shape, bytes }
    }
}

impl TensorFiles {
    /// Opens a model folder, as transformers does: `model.safetensors` if it exists, else the shards in
    /// `model.safetensors.index.json`, each tensor from the shard that the index names; without either, `pytorch_model.bin` or the
    /// shards in `pytorch_model.bin.index.json`.
    ///
    /// # Errors
    /// If a file can't be read or is not a complete file of tensors, the index is invalid, or there are weights of both kinds.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = match sources::find(folder)? {
            Source::One(file) => return Self::open_file(&file),
            Source::Shards(index) => index,
        };
        let shards = sources::Shards::read(&index)?;
        shards.check_present()?;
        let mut all = Self::of_entries(folder.to_path_buf(), HashMap::new());
        for shard in shards.names() {
            let found = Self::open_file(&folder.join(shard))?.tensors;
            for (name, entry) in found.into_iter().filter(|(name, _)| shards.has(shard, name)) {
                all.add(name, entry)?;
            }
        }
        Ok(all)
    }

    /// Opens one file: safetensors, or one of `torch.save`.
    ///
    /// # Errors
    /// If the file can't be read, or is not a complete file of tensors.
    pub fn open_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let map = Arc::new(Map::of(&file).map_err(ModelError::io(path))?);
        let found = if pickle::is_archive(&map) { pickle::tensors(path, &map)? } else { safetensors(path, &map)? };
        let mut all = Self::of_entries(path.to_path_buf(), HashMap::new());
        for (name, whole) in found {
            let names = legacy_names::current_names(&name);
            if names.len() > 1 && !whole.shape.first().is_some_and(|rows| rows.is_multiple_of(names.len())) {
                let message = format!("the tensor `{name}` can't be split into {} equal parts", names.len());
                return Err(ModelError::file(path, message));
            }
            let count = names.len();
            for (index, name) in names.into_iter().enumerate() {
                all.add(name, whole.part(index, count))?;
            }
        }
        Ok(all)
    }

    /// Adds a tensor. Which of two is meant can't be known, whatever they are called in other layouts.
    fn add(&mut self, name: String, entry: Entry) -> Result<()> {
        let file = entry.file.clone();
        if self.tensors.contains_key(&name) {
            return Err(ModelError::file(&file, format!("it has the tensor `{name}` twice, under one name or two")));
        }
        self.tensors.insert(name, entry);
        Ok(())
    }

    /// Tensors that were found at `path` in another way.
    pub(crate) fn of_entries(path: PathBuf, tensors: HashMap<String, Entry>) -> Self {
        Self { path, tensors, used: RefCell::default() }
    }

    /// The file or folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the `config.json` in the same folder.
    pub fn config_file(&self) -> PathBuf {
        let folder = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
        folder.unwrap_or(&self.path).join("config.json")
    }

    /// The names of all tensors, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A frozen matrix `[rows, cols]` in the file's encoding, memory-mapped: `name.weight`, or `name.q_weight` and
    /// `name.q_scale` in 4 bits.
    ///
    /// # Errors
    /// If the tensor is missing or has the wrong shape or type.
    pub fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let (levels, scales) = (format!("{name}.{Q4F16_LEVELS}"), format!("{name}.{Q4F16_SCALES}"));
        if self.has(&levels) {
            let levels = self.bytes(&levels, &[rows, q4f16::words_per_row(cols)], Dtype::U32)?;
            let scales = self.bytes(&scales, &[rows, q4f16::scales_per_row(cols)], Dtype::F16)?;
            return Ok(Weight::Stored(Arc::new(Stored::q4f16(rows, cols, levels, scales))));
        }
        let name = format!("{name}.weight");
        let entry = self.entry(&name, &[rows, cols])?;
        Ok(Weight::Stored(Arc::new(Stored::plain(rows, cols, encoding(entry, &name)?, entry.bytes.clone()))))
    }

    /// Reads a tensor of shape `shape` as an f32 matrix `[rows, cols]`.
    ///
    /// # Errors
    /// If the tensor is missing, has the wrong shape or type, or can't be read.
    pub fn mat(&self, name: &str, shape: &[usize], rows: usize, cols: usize) -> Result<Mat> {
        let entry = self.entry(name, shape)?;
        let encoding = encoding(entry, name)?;
        let mut values = vec![0.0; rows * cols];
        encoding.widen(entry.bytes.get(), &mut values);
        // Otherwise the file's pages would stay in memory beside the copy.
        entry.bytes.release();
        Ok(Mat::from_host(rows, cols, values))
    }

    /// Reads the table `name` as an f32 matrix `[rows, cols]`: `name.weight`, or in 4 bits.
    ///
    /// # Errors
    /// If the tensor is missing or has the wrong shape or type.
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Mat> {
        if !self.has(&format!("{name}.{Q4F16_LEVELS}")) {
            return self.mat(&format!("{name}.weight"), &[rows, cols], rows, cols);
        }
        match self.weight(name, rows, cols)? {
            Weight::Stored(stored) => Ok(Mat::from_host(rows, cols, stored.to_f32())),
            Weight::Dense(mat) => Ok(mat),
        }
    }

    /// Reads a vector as an f32 matrix `[1, length]`.
    ///
    /// # Errors
    /// If the tensor is missing, has the wrong shape or type, or can't be read.
    pub fn vector(&self, name: &str, length: usize) -> Result<Mat> {
        self.mat(name, &[length], 1, length)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// If the tensor is missing.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        self.find(name).map(|entry| entry.shape.as_slice())
    }

    fn bytes(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Bytes> {
        let entry = self.entry(name, shape)?;
        let found = match entry.kind {
            Kind::Numbers(encoding) => dtype::dtype_of(encoding),
            Kind::Other(found) => Some(found),
        };
        if found != Some(dtype) {
            let message = format!("the tensor `{name}` has the type {:?}, not {dtype:?}", entry.kind);
            return Err(ModelError::file(&entry.file, message));
        }
        Ok(entry.bytes.clone())
    }

    /// Accepts a tensor that the model may have but does not read.
    pub fn accept(&self, name: &str) {
        self.used.borrow_mut().insert(name.into());
    }

    /// Checks the tensors once the model has requested all that it needs. Reads every requested tensor from the disk.
    ///
    /// # Errors
    /// If a tensor was neither requested nor is `ignored`, or a requested one has non-finite values.
    pub fn finish(&self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.borrow();
        let stray = self.tensors.iter().filter(|(name, _)| !used.contains(*name) && !ignored(name));
        if let Some((name, entry)) = stray.min_by_key(|(name, _)| name.as_str()) {
            return Err(ModelError::Extra { file: entry.file.to_path_buf(), tensor: name.clone() });
        }
        let mut entries: Vec<_> = self.tensors.iter().filter(|(name, _)| used.contains(*name)).collect();
        entries.sort_by_key(|(name, _)| name.as_str());
        let is_finite = |entry: &Entry| {
            let finite = match entry.kind {
                Kind::Numbers(encoding) => finite::all_finite(encoding, entry.bytes.get()),
                Kind::Other(_) => true,
            };
            entry.bytes.release();
            finite
        };
        match entries.iter().find(|(_, entry)| !is_finite(entry)) {
            Some((name, entry)) => {
                Err(ModelError::NotFinite { file: entry.file.to_path_buf(), tensor: (*name).clone() })
            }
            None => Ok(()),
        }
    }

    fn find(&self, name: &str) -> Result<&Entry> {
        self.used.borrow_mut().insert(name.into());
        self.tensors.get(name).ok_or_else(|| ModelError::Missing { file: self.path.clone(), tensor: name.into() })
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let entry = self.find(name)?;
        if entry.shape != shape {
            return Err(ModelError::Shape {
                file: entry.file.to_path_buf(),
                tensor: name.into(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        Ok(entry)
    }
}

/// All tensors of a safetensors file, with their names in it.
fn safetensors(path: &Path, map: &Arc<Map>) -> Result<Vec<(String, Entry)>> {
    // Also checks that the header is valid and that the tensors exactly cover the rest of the file.
    let (header, metadata) = SafeTensors::read_metadata(map).map_err(|error| {
        let instead = sources::looks_like(map).map_or_else(
            || format!("this is not a complete safetensors file ({error}): download it again"),
            |what| format!("this is not a file of tensors but {what}"),
        );
        ModelError::file(path, instead)
    })?;
    let (start, file) = (header + 8, Arc::new(path.to_path_buf()));
    let mut all = Vec::new();
    for (name, info) in metadata.tensors() {
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        if range.end > map.len() {
            return Err(ModelError::file(path, "the file is shorter than its header says: download it again"));
        }
        let kind = dtype::encoding_of(info.dtype).map_or(Kind::Other(info.dtype), Kind::Numbers);
        let bytes = Bytes::mapped(map.clone(), range);
        all.push((name, Entry { file: file.clone(), kind, shape: info.shape.clone(), bytes }));
    }
    Ok(all)
}

fn encoding(entry: &Entry, name: &str) -> Result<Encoding> {
    match entry.kind {
        Kind::Numbers(encoding) => Ok(encoding),
        Kind::Other(found) => {
            let message = format!(
                "the tensor `{name}` has the type {found:?}, which is not supported (supported: F32, F16, BF16)"
            );
            Err(ModelError::file(&entry.file, message))
        }
    }
}

/// Reads a JSON file.
///
/// # Errors
/// If the file can't be read, or is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(ModelError::io(path))?;
    serde_json::from_slice(&text).map_err(|error| ModelError::file(path, format!("this is not JSON: {error}")))
}
