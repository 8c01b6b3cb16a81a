//! Writes safetensors files: one, or several with a list of which tensor is in which. Independent of models.

use std::{collections::BTreeMap, path::Path};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{
    INDEX, SINGLE,
    dtype::dtype_of,
    format::{Encoded, Part, PartKind},
    named::NamedTensor,
    stream::{Placed, Spot, Target, write_bytes, write_files},
};
use crate::{
    encoding::Encoding,
    error::{ModelError, Result},
};

/// Writes a safetensors file.
///
/// # Errors
/// If safetensors has no type for `encoding` (ggml's blocks), a value is too large for it, or the file can't be written.
pub fn write_tensors(path: &Path, tensors: Vec<NamedTensor<'_>>, encoding: Encoding) -> Result<()> {
    write_encoded(path, tensors.into_iter().map(|tensor| Encoded::plain(tensor, encoding)).collect())
}

/// Writes `model.safetensors` into `folder`; if that would have more than `largest` bytes of tensors, several files of at most as
/// many (a larger tensor has a file of its own), and `model.safetensors.index.json` as transformers does.
pub(crate) fn write_sharded(folder: &Path, mut tensors: Vec<Encoded<'_>>, largest: u64) -> Result<()> {
    let bytes = |tensor: &Encoded<'_>| tensor.parts().iter().map(|part| part.bytes as u64).sum::<u64>();
    let total: u64 = tensors.iter().map(bytes).sum();
    if total <= largest {
        return write_encoded(&folder.join(SINGLE), tensors);
    }
    let (mut shards, mut size) = (vec![Vec::new()], 0);
    for tensor in tensors.drain(..) {
        let more = bytes(&tensor);
        if size > 0 && size + more > largest {
            shards.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    let (count, mut index) = (shards.len(), BTreeMap::new());
    for (number, shard) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        for part in shard.iter().flat_map(Encoded::parts) {
            index.insert(part.name, name.clone());
        }
        write_encoded(&folder.join(name), shard)?;
    }
    write_json(&folder.join(INDEX), &json!({ "metadata": { "total_size": total }, "weight_map": index }))
}

/// Writes length of the header (u64), header (JSON: type, shape and offsets of each tensor) and data, the safetensors
/// format. Wider types come first, so that every tensor is aligned; tensors of one width are sorted by name.
pub(crate) fn write_encoded(path: &Path, tensors: Vec<Encoded<'_>>) -> Result<()> {
    let mut parts = Vec::new();
    for (tensor, encoded) in tensors.iter().enumerate() {
        for (number, part) in encoded.parts().into_iter().enumerate() {
            parts.push((safetensors_type(path, &part)?, part, (tensor, number)));
        }
    }
    parts.sort_by(|a, b| b.0.bitsize().cmp(&a.0.bitsize()).then_with(|| a.1.name.cmp(&b.1.name)));
    let mut header = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut spots: Vec<Vec<Spot>> = tensors.iter().map(|tensor| vec![Spot::default(); tensor.parts().len()]).collect();
    let mut end = 0;
    for (dtype, part, (tensor, number)) in parts {
        let start = end;
        end += part.bytes as u64;
        spots[tensor][number].offset = start;
        header.insert(part.name, json!({ "dtype": dtype, "shape": part.shape, "data_offsets": [start, end] }));
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let head = [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat();
    let start = head.len() as u64;
    spots.iter_mut().flatten().for_each(|spot| spot.offset += start);
    let placed: Vec<Placed<'_>> =
        tensors.into_iter().zip(spots).map(|(tensor, spots)| Placed { tensor, spots }).collect();
    write_files(&[Target { path: path.to_path_buf(), head, size: start + end }], &placed)
}

fn safetensors_type(path: &Path, part: &Part) -> Result<Dtype> {
    match part.kind {
        PartKind::U32 => Ok(Dtype::U32),
        PartKind::Encoding(encoding) => dtype_of(encoding)
            .ok_or_else(|| ModelError::file(path, format!("a safetensors file can't hold {encoding:?}"))),
    }
}

/// Writes a JSON file, indented.
///
/// # Errors
/// If the file can't be written.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_bytes(path, format!("{value:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::borrow::Cow;

    use super::*;
    use crate::{
        layers::{Linear, Lora, LoraSettings},
        tensor::{Mat, Weight},
        weights::TensorFiles,
    };

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 37) % 4001) as f32 / 1024.0 - 2.0).collect()
    }

    /// `[3000, 701]`, which is written in several pieces, the last of which is shorter.
    fn matrix(values: &[f32]) -> NamedTensor<'_> {
        NamedTensor::matrix("m", 3000, 701, |rows| Cow::Borrowed(&values[rows.start * 701..rows.end * 701]))
    }

    #[test]
    fn pieces_lie_where_the_whole_would() {
        let folder = tempfile::tempdir().unwrap();
        let all = values(3000 * 701);
        assert!(matrix(&all).pieces().count() > 2);
        let file = folder.path().join("plain.safetensors");
        write_tensors(&file, vec![NamedTensor::constant("z", vec![5], 3.0), matrix(&all)], Encoding::F32).unwrap();
        let files = TensorFiles::open_file(&file).unwrap();
        assert_eq!(*files.mat("m.weight", &[3000, 701], 3000, 701).unwrap().to_host(), all);
        assert_eq!(*files.vector("z", 5).unwrap().to_host(), [3.0; 5]);

        write_sharded(folder.path(), vec![Encoded::q4f16(matrix(&all))], u64::MAX).unwrap();
        let (levels, scales) = crate::encoding::q4f16::narrow(&all, 701);
        let bytes = std::fs::read(folder.path().join(SINGLE)).unwrap();
        assert!(bytes.ends_with(&[levels, scales].concat()));
    }

    #[test]
    fn a_tensor_under_two_names_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("twice.safetensors");
        let names = ["model.norm.weight", "language_model.model.norm.weight"];
        let tensors = names.map(|name| NamedTensor::constant(name, vec![4], 1.0));
        write_tensors(&file, tensors.into(), Encoding::F32).unwrap();
        let error = TensorFiles::open_file(&file).err().unwrap().to_string();
        assert!(error.contains("`model.norm.weight` twice"), "{error}");
    }

    #[test]
    fn shards_are_no_larger_than_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = || {
            (0..5).map(|n| Encoded::plain(NamedTensor::constant(format!("t{n}"), vec![100], n as f32), Encoding::F32))
        };
        write_sharded(folder.path(), tensors().collect(), 1000).unwrap();
        let files = TensorFiles::open(folder.path()).unwrap();
        for n in 0..5 {
            assert_eq!(*files.vector(&format!("t{n}"), 100).unwrap().to_host(), [n as f32; 100]);
        }
        let index: Value = serde_json::from_slice(&std::fs::read(folder.path().join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 2000);
        assert_eq!(index["weight_map"]["t1"], "model-00001-of-00003.safetensors");
        assert_eq!(index["weight_map"]["t4"], "model-00003-of-00003.safetensors");
        let none = tempfile::tempdir().unwrap();
        write_sharded(none.path(), tensors().collect(), 2000).unwrap();
        assert!(none.path().join(SINGLE).is_file() && !none.path().join(INDEX).exists());
    }

    /// A value that only a later piece has; its error names the tensor, and nothing is left behind.
    #[test]
    fn overflow_in_any_piece_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = values(3000 * 701);
        all[2_000_000] = -1e6;
        // In 4 bits, it is the scale that is too large: a seventh of the value.
        for (tensor, value) in
            [(Encoded::plain(matrix(&all), Encoding::F16), "-1e6"), (Encoded::q4f16(matrix(&all)), "-1.4285714e5")]
        {
            let error = write_sharded(folder.path(), vec![tensor], u64::MAX).unwrap_err().to_string();
            assert!(error.contains("`m.weight`") && error.contains(value), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_adapter_is_merged_into_some_rows_as_into_all() {
        let mat = |rows, cols| Mat::from_host(rows, cols, values(rows * cols));
        let settings = LoraSettings::new(3, 6.0, 0.0);
        let lora = Some(Lora::new(mat(3, 70), mat(50, 3), &settings));
        let linear = Linear { name: "l".into(), weight: Weight::Dense(mat(50, 70)), bias: None, lora };
        let pieces: Vec<f32> =
            [0..1, 1..20, 20..50].into_iter().flat_map(|rows| linear.merged_rows(rows).into_owned()).collect();
        assert_eq!(*linear.merged(), pieces);
    }
}
