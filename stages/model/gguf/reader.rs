//! The GGUF container: metadata by key, tensors by name. Every length is checked against the file before use.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    encoding::Encoding,
    error::{ModelError, Result},
    mmap::Map,
    tensor::Bytes,
    weights::looks_like,
};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Number(f64),
    Whole(i128),
    Flag(bool),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    pub(super) fn text(&self) -> Option<String> {
        if let Self::Text(text) = self { Some(text.clone()) } else { None }
    }

    pub(super) fn whole(&self) -> Option<i128> {
        if let Self::Whole(number) = self { Some(*number) } else { None }
    }
}

/// A tensor in the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Outermost dimension first; GGUF stores the innermost first.
    pub(super) shape: Vec<usize>,
    pub(super) encoding: Encoding,
    range: Range<usize>,
}

/// An open, memory-mapped GGUF file.
pub(super) struct Gguf {
    pub(super) path: PathBuf,
    metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<Tensor>,
    map: Arc<Map>,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let map = Map::of(&file).map_err(ModelError::io(path))?;
        let mut cursor = Cursor { bytes: &map, at: 0, unknown: None };
        let contents = cursor.contents();
        if let Some((tensor, number)) = cursor.unknown {
            let message = format!(
                "`{tensor}` is encoded in a way that is not supported (number {number} of ggml's types); supported are F32, F16, BF16, \
                 Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K"
            );
            return Err(ModelError::file(path, message));
        }
        match contents {
            Some((metadata, tensors)) => Ok(Self { path: path.into(), metadata, tensors, map: Arc::new(map) }),
            None => Err(ModelError::file(
                path,
                match looks_like(&map).filter(|_| !map.starts_with(b"GGUF")) {
                    Some(what) => format!("this is not a GGUF file but {what}"),
                    None => "this is not a complete GGUF file (version 2 or 3): download it again".into(),
                },
            )),
        }
    }

    pub(super) fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map[tensor.range.clone()]
    }

    /// The bytes of a tensor, which may outlive this.
    pub(super) fn shared(&self, tensor: &Tensor) -> Bytes {
        Bytes::mapped(self.map.clone(), tensor.range.clone())
    }

    fn get<T>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let value = self.metadata.get(key).and_then(read);
        value.ok_or_else(|| ModelError::file(&self.path, format!("the key `{key}` is missing or has the wrong type")))
    }

    /// The value of a key.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// What `read` makes of a key; `None` if the file does not have the key. A key of the wrong type is an error.
    pub(super) fn optional<T>(&self, key: &str, read: impl Fn(&Self, &str) -> Result<T>) -> Result<Option<T>> {
        if self.metadata.contains_key(key) { read(self, key).map(Some) } else { Ok(None) }
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        self.get(key, Value::text)
    }

    pub(super) fn number(&self, key: &str) -> Result<usize> {
        // A larger dimension means a broken file.
        self.get(key, |value| usize::try_from(value.whole()?).ok().filter(|number| *number <= 1 << 28))
    }

    pub(super) fn float(&self, key: &str) -> Result<f64> {
        self.get(key, |value| if let Value::Number(number) = value { Some(*number) } else { None })
    }

    pub(super) fn list<T>(&self, key: &str, item: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        self.get(key, |value| if let Value::List(list) = value { list.iter().map(&item).collect() } else { None })
    }

    /// The tokenizer's vocabulary.
    pub(super) fn tokens(&self) -> Result<Vec<String>> {
        self.list("tokenizer.ggml.tokens", Value::text)
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The first tensor with an encoding that is not known, and its number.
    unknown: Option<(String, u32)>,
}

type Contents = (BTreeMap<String, Value>, Vec<Tensor>);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.length()?;
        Some(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn contents(&mut self) -> Option<Contents> {
        if self.take(4)? != b"GGUF" || !matches!(self.u32()?, 2 | 3) {
            return None;
        }
        let (tensors, keys) = (self.length()?, self.length()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let (key, kind) = (self.text()?, self.u32()?);
            metadata.insert(key, self.value(kind, 0)?);
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            infos.push(self.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Whole(alignment)) => usize::try_from(*alignment).ok().filter(|alignment| *alignment > 0)?,
            _ => 32,
        };
        let data = self.at.checked_next_multiple_of(alignment)?;
        for info in &mut infos {
            info.range = info.range.start.checked_add(data)?..info.range.end.checked_add(data)?;
            self.bytes.get(info.range.clone())?;
        }
        Some((metadata, infos))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Option<Value> {
        let whole = |number: i128| Some(Value::Whole(number));
        match kind {
            0 => whole(u8::from_le_bytes(self.array()?).into()),
            1 => whole(i8::from_le_bytes(self.array()?).into()),
            2 => whole(u16::from_le_bytes(self.array()?).into()),
            3 => whole(i16::from_le_bytes(self.array()?).into()),
            4 => whole(self.u32()?.into()),
            5 => whole(i32::from_le_bytes(self.array()?).into()),
            6 => Some(Value::Number(f32::from_le_bytes(self.array()?).into())),
            7 => Some(Value::Flag(self.array::<1>()?[0] != 0)),
            8 => self.text().map(Value::Text),
            // Known files have no nested lists; the limit keeps a hostile file from overflowing the stack.
            9 if depth < 4 => {
                let (kind, length) = (self.u32()?, self.length()?);
                // No capacity is reserved, since the length may be wrong.
                let mut list = Vec::new();
                for _ in 0..length {
                    list.push(self.value(kind, depth + 1)?);
                }
                Some(Value::List(list))
            }
            10 => whole(u64::from_le_bytes(self.array()?).into()),
            11 => whole(i64::from_le_bytes(self.array()?).into()),
            12 => Some(Value::Number(f64::from_le_bytes(self.array()?))),
            _ => None,
        }
    }

    /// Reads a tensor's description; its range is relative to the start of the data section.
    fn tensor(&mut self) -> Option<Tensor> {
        let (name, dimensions) = (self.text()?, self.u32()?);
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            // No tensor of a model is empty, and nothing else would bound the number of its rows.
            shape.push(self.length().filter(|length| *length > 0)?);
        }
        shape.reverse();
        let (kind, start) = (self.u32()?, self.length()?);
        let Some(encoding) = encoding(kind) else {
            self.unknown =
                Some((name, kind)).filter(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()));
            return None;
        };
        // A row is whole blocks.
        encoding.bytes(shape.last().copied().unwrap_or(1))?;
        let count = shape.iter().try_fold(1_usize, |count, length| count.checked_mul(*length))?;
        let end = start.checked_add(encoding.bytes(count)?)?;
        Some(Tensor { name, shape, encoding, range: start..end })
    }
}

/// The encoding with this number in ggml's `enum ggml_type` (`ggml.h`).
fn encoding(number: u32) -> Option<Encoding> {
    match number {
        0 => Some(Encoding::F32),
        1 => Some(Encoding::F16),
        2 => Some(Encoding::Q4_0),
        3 => Some(Encoding::Q4_1),
        6 => Some(Encoding::Q5_0),
        7 => Some(Encoding::Q5_1),
        8 => Some(Encoding::Q8_0),
        12 => Some(Encoding::Q4K),
        13 => Some(Encoding::Q5K),
        14 => Some(Encoding::Q6K),
        30 => Some(Encoding::Bf16),
        _ => None,
    }
}
