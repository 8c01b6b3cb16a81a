//! Tensors in files of `torch.save`, as LLaVA's and Imp's own scripts leave them (`pytorch_model.bin`, `mm_projector.bin`, ...). Such a
//! file is a program in pickle, which PyTorch runs; here it is only read: `machine.rs` says what it may hold. Independent of names.
//!
//! Values stay where they are in the mapped file, like those of safetensors. Source: PyTorch's `torch/serialization.py`.

mod archive;
mod machine;
mod value;

use std::{path::Path, sync::Arc};

use super::{Entry, Kind};
use crate::{
    error::{ModelError, Result},
    mmap::Map,
    tensor::Bytes,
};
use archive::Archive;
use value::Tensor;

/// Whether a file is a zip archive, by its first bytes.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// All tensors of a file of `torch.save`, with their names in it.
///
/// # Errors
/// If it is damaged, or holds anything but tensors by name.
pub(super) fn tensors(path: &Path, map: &Arc<Map>) -> Result<Vec<(String, Entry)>> {
    let wrong = |message: String| ModelError::file(path, message);
    let archive = Archive::read(map).map_err(wrong)?;
    let described = machine::tensors(&map[archive.list.clone()])
        .map_err(|message| wrong(format!("in its list of tensors (`data.pkl`): {message}")))?;
    let file = Arc::new(path.to_path_buf());
    // Tensors that share a storage can't be copied out of it again and again.
    let mut copied = 0_usize;
    let mut all = Vec::with_capacity(described.len());
    for (name, tensor) in described {
        let bytes = bytes(map, &archive, &tensor, &mut copied)
            .map_err(|message| wrong(format!("the tensor {name:?}: {message}")))?;
        all.push((
            name.to_string(),
            Entry { file: file.clone(), kind: tensor.storage.kind, shape: tensor.shape, bytes },
        ));
    }
    Ok(all)
}

/// The values of a tensor, row-major: in place, or copied if they lie in another order.
fn bytes(
    map: &Arc<Map>,
    archive: &Archive,
    tensor: &Tensor<'_>,
    copied: &mut usize,
) -> std::result::Result<Bytes, String> {
    let (storage, width) = (&tensor.storage, width(tensor.storage.kind));
    let file =
        archive.storage(storage.key).ok_or_else(|| format!("its values, `data/{}`, are missing", storage.key))?;
    if storage.count.checked_mul(width) != Some(file.len()) {
        return Err(format!(
            "`data/{}` has {} bytes, and not {} values of {width}",
            storage.key,
            file.len(),
            storage.count
        ));
    }
    let count = tensor.count().unwrap_or(0);
    if count == 0 || tensor.is_contiguous() {
        let start = file.start + if count == 0 { 0 } else { tensor.offset * width };
        return Ok(Bytes::mapped(map.clone(), start..start + count * width));
    }
    *copied += count * width;
    if *copied > map.len() {
        return Err("too many tensors are transposed views of the same values: save them with `.contiguous()`".into());
    }
    let copy = gathered(&map[file], tensor, width);
    let length = copy.len();
    Ok(Bytes::new(Arc::new(copy), 0..length))
}

/// The values in row-major order; all are within `from`.
fn gathered(from: &[u8], tensor: &Tensor<'_>, width: usize) -> Vec<u8> {
    let mut at = vec![0; tensor.shape.len()];
    let mut copy = Vec::with_capacity(tensor.count().unwrap_or(0) * width);
    for _ in 0..tensor.count().unwrap_or(0) {
        let index = tensor.offset + at.iter().zip(&tensor.strides).map(|(at, stride)| at * stride).sum::<usize>();
        copy.extend_from_slice(&from[index * width..(index + 1) * width]);
        for (at, length) in at.iter_mut().zip(&tensor.shape).rev() {
            *at += 1;
            if *at < *length {
                break;
            }
            *at = 0;
        }
    }
    copy
}

/// Size of a value in bytes.
fn width(kind: Kind) -> usize {
    match kind {
        Kind::Numbers(encoding) => encoding.block().bytes,
        Kind::Other(dtype) => dtype.bitsize() / 8,
    }
}
