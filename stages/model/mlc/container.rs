//! MLC's container: shards of raw tensors, and two equal lists of what is where, of which older programs read the second. Independent
//! of models. Source: TVM's `tvmjs.py`.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use md5::{Digest, Md5};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::{
    encoding::Encoding,
    error::{ModelError, Result},
    weights::{Encoded, Part, PartKind, Placed, Spot, Target, write_bytes, write_files},
};

/// The lists of shards: the current name, and that of 2024, which mlc-imp reads.
pub(super) const LISTS: [&str; 2] = ["tensor-cache.json", "ndarray-cache.json"];
/// Shards are smaller, but for those of one large tensor.
const LARGEST: u64 = 32 << 20;
/// Bytes that are read at a time for a checksum.
const CHUNK: usize = 1 << 20;

/// Distributes tensors of these sizes to shards, in the order in which TVM closes them: a tensor of at least half a shard that doesn't fit
/// gets one of its own, and what is smaller closes the shard before it.
fn shards(sizes: &[u64]) -> Vec<Vec<usize>> {
    let (mut all, mut open, mut filled) = (Vec::new(), Vec::new(), 0);
    for (index, size) in sizes.iter().enumerate() {
        if filled + size >= LARGEST {
            if size * 2 >= LARGEST {
                all.push(vec![index]);
                continue;
            }
            all.push(std::mem::take(&mut open));
            filled = 0;
        }
        open.push(index);
        filled += size;
    }
    if !open.is_empty() {
        all.push(open);
    }
    all
}

/// Where everything lies.
pub(super) struct Plan<'a> {
    targets: Vec<Target>,
    placed: Vec<Placed<'a>>,
    /// The parts in each shard with their places.
    shards: Vec<Vec<(Part, u64)>>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(folder: &Path, tensors: Vec<Encoded<'a>>) -> Self {
        let parts: Vec<Vec<Part>> = tensors.iter().map(Encoded::parts).collect();
        let flat: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(tensor, parts)| (0..parts.len()).map(move |part| (tensor, part)))
            .collect();
        let sizes: Vec<u64> = flat.iter().map(|(tensor, part)| parts[*tensor][*part].bytes as u64).collect();
        let mut spots: Vec<Vec<Spot>> = parts.iter().map(|parts| vec![Spot::default(); parts.len()]).collect();
        let (mut shards_, mut targets) = (Vec::new(), Vec::new());
        for (file, members) in shards(&sizes).into_iter().enumerate() {
            let (mut offset, mut shard) = (0, Vec::new());
            for index in members {
                let (tensor, part) = flat[index];
                spots[tensor][part] = Spot { file, offset };
                shard.push((parts[tensor][part].clone(), offset));
                offset += sizes[index];
            }
            shards_.push(shard);
            targets.push(Target {
                path: folder.join(format!("params_shard_{file}.bin")),
                head: Vec::new(),
                size: offset,
            });
        }
        let placed = tensors.into_iter().zip(spots).map(|(tensor, spots)| Placed { tensor, spots }).collect();
        Self { targets, placed, shards: shards_ }
    }

    /// All tensors of the files, with their sizes in bytes.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.shards.iter().flatten().map(|(part, _)| part)
    }

    /// Writes shards and lists to `folder`; `weights` is the number of parameters before they were encoded.
    pub(super) fn write(&self, folder: &Path, weights: u64) -> Result<()> {
        write_files(&self.targets, &self.placed)?;
        let sums: Vec<String> = self.targets.par_iter().map(|target| checksum(&target.path)).collect::<Result<_>>()?;
        let text = text(&self.list(&sums, weights));
        LISTS.iter().try_for_each(|name| write_bytes(&folder.join(name), text.as_bytes()))
    }

    fn list(&self, sums: &[String], weights: u64) -> Value {
        let records = self.shards.iter().zip(&self.targets).zip(sums).map(|((shard, target), sum)| {
            let records = shard.iter().map(|(part, offset)| {
                json!({
                    "name": part.name,
                    "shape": part.shape,
                    "dtype": type_name(part.kind),
                    // Says how f32 would be stored, of which there is none.
                    "format": "f32-to-bf16",
                    "nbytes": part.bytes,
                    "byteOffset": offset,
                })
            });
            json!({
                "dataPath": target.path.file_name().map(|name| name.to_string_lossy()),
                "format": "raw-shard",
                "nbytes": target.size,
                "records": records.collect::<Vec<_>>(),
                "md5sum": sum,
            })
        });
        let bytes: u64 = self.targets.iter().map(|target| target.size).sum();
        json!({
            "metadata": {
                "ParamSize": self.parts().count(),
                "ParamBytes": bytes as f64,
                "BitsPerParam": bytes as f64 * 8.0 / weights.max(1) as f64,
            },
            "records": records.collect::<Vec<_>>(),
        })
    }
}

fn type_name(kind: PartKind) -> &'static str {
    match kind {
        PartKind::U32 => "uint32",
        PartKind::Encoding(Encoding::F32) => "float32",
        PartKind::Encoding(Encoding::Bf16) => "bfloat16",
        PartKind::Encoding(_) => "float16",
    }
}

/// JSON as Python writes it with an indent of four.
pub(super) fn text(value: &Value) -> String {
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut bytes, format);
    // Writing a JSON value to memory does not fail.
    let _ = serde::Serialize::serialize(value, &mut writer);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn checksum(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(ModelError::io(path))?;
    let (mut sum, mut chunk) = (Md5::new(), vec![0; CHUNK]);
    loop {
        let read = file.read(&mut chunk).map_err(ModelError::io(path))?;
        if read == 0 {
            return Ok(format!("{:032x}", u128::from_be_bytes(sum.finalize().into())));
        }
        sum.update(&chunk[..read]);
    }
}

/// The list of a folder, if it has one.
pub(super) fn list_in(folder: &Path) -> Option<PathBuf> {
    LISTS.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_tensor_has_a_shard_of_its_own() {
        const MIB: u64 = 1 << 20;
        let sizes = |of: &[u64]| of.iter().map(|size| size * MIB).collect::<Vec<_>>();
        assert!(shards(&[]).is_empty());
        assert_eq!(shards(&sizes(&[10, 10, 10])), [vec![0, 1, 2]]);
        // What fills it to the last byte does not fit.
        assert_eq!(shards(&sizes(&[10, 10, 12])), [vec![0, 1], vec![2]]);
        assert_eq!(shards(&sizes(&[10, 16, 10])), [vec![0, 1], vec![2]]);
        // Before the shard that is still open.
        assert_eq!(shards(&sizes(&[20, 16, 10, 100, 1])), [vec![1], vec![3], vec![0, 2, 4]]);
        assert_eq!(shards(&sizes(&[40])), [vec![0]]);
    }
}
