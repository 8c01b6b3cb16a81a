//! The GGUF container, version 3: metadata by key, descriptions of tensors, aligned data. Source: ggml's `docs/gguf.md`.

use std::path::Path;

use super::super::setting::Setting;
use crate::{
    encoding::Encoding,
    error::{ModelError, Result},
    weights::{Encoded, NamedTensor, Placed, Spot, Target, write_files},
};

const ALIGNMENT: u64 = 32;

/// Metadata.
#[derive(Default)]
pub(super) struct Keys {
    count: u64,
    bytes: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Keys {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.count += 1;
        self.bytes.extend([text(key).as_slice(), &kind.to_le_bytes(), value].concat());
    }

    pub(super) fn set(&mut self, key: &str, setting: &Setting) {
        match setting {
            Setting::Number(value) => self.number(key, *value),
            Setting::Float(value) => self.put(key, 6, &(*value as f32).to_le_bytes()),
            Setting::Flag(value) => self.flag(key, *value),
            Setting::Text(value) => self.text(key, value),
            Setting::Numbers(values) => self.numbers(key, values.iter().copied()),
            Setting::Floats(values) => self.floats(key, values.iter().copied()),
        }
    }

    pub(super) fn number(&mut self, key: &str, value: usize) {
        self.put(key, 4, &(value as u32).to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.put(key, 7, &[u8::from(value)]);
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.put(key, 8, &text(value));
    }

    pub(super) fn numbers(&mut self, key: &str, values: impl IntoIterator<Item = i32>) {
        self.list(key, 5, values.into_iter().map(i32::to_le_bytes));
    }

    pub(super) fn floats(&mut self, key: &str, values: impl IntoIterator<Item = f32>) {
        self.list(key, 6, values.into_iter().map(f32::to_le_bytes));
    }

    pub(super) fn texts<'a>(&mut self, key: &str, values: impl IntoIterator<Item = &'a str>) {
        self.list(key, 8, values.into_iter().map(text));
    }

    fn list<B: AsRef<[u8]>>(&mut self, key: &str, kind: u32, values: impl Iterator<Item = B>) {
        let (mut count, mut bytes) = (0_u64, Vec::new());
        for value in values {
            count += 1;
            bytes.extend_from_slice(value.as_ref());
        }
        let head = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
        self.put(key, 9, &[head, bytes].concat());
    }
}

/// Writes a file. Returns the size of its tensors in bytes.
pub(super) fn write(path: &Path, keys: &Keys, tensors: Vec<(NamedTensor<'_>, Encoding)>) -> Result<u64> {
    let mut head = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
    head.extend([(tensors.len() as u64).to_le_bytes(), keys.count.to_le_bytes()].concat());
    head.extend_from_slice(&keys.bytes);
    let (mut placed, mut end, mut size) = (Vec::new(), 0_u64, 0);
    for (tensor, encoding) in tensors {
        let width = tensor.shape.last().copied().unwrap_or(1);
        if encoding.bytes(width).is_none() {
            let message = format!("the rows of `{}` have {width} values, which {encoding:?} can't divide", tensor.name);
            return Err(ModelError::file(path, message));
        }
        head.extend(text(&tensor.name));
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        // The innermost dimension first.
        head.extend(tensor.shape.iter().rev().flat_map(|length| (*length as u64).to_le_bytes()));
        head.extend(number(encoding).to_le_bytes());
        head.extend(end.to_le_bytes());
        let tensor = Encoded::plain(tensor, encoding);
        let bytes = tensor.parts().iter().map(|part| part.bytes as u64).sum::<u64>();
        placed.push(Placed { tensor, spots: vec![Spot { file: 0, offset: end }] });
        end = (end + bytes).next_multiple_of(ALIGNMENT);
        size += bytes;
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    let start = head.len() as u64;
    placed.iter_mut().flat_map(|placed| &mut placed.spots).for_each(|spot| spot.offset += start);
    write_files(&[Target { path: path.to_path_buf(), head, size: start + end }], &placed)?;
    Ok(size)
}

/// The encoding's number in ggml's `enum ggml_type` (`ggml.h`).
fn number(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F32 => 0,
        Encoding::F16 => 1,
        Encoding::Q4_0 => 2,
        Encoding::Q4_1 => 3,
        Encoding::Q5_0 => 6,
        Encoding::Q5_1 => 7,
        Encoding::Q8_0 => 8,
        Encoding::Q4K => 12,
        Encoding::Q5K => 13,
        Encoding::Q6K => 14,
        Encoding::Bf16 => 30,
    }
}
