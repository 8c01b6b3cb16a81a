//! The tensors of an Imp in MLC's container, under the names of a merged folder: its weights stay in 4 bits. What does not fit the
//! container's own list is refused; checksums are not read again, since every tensor is.

use std::{collections::HashMap, fs::File, path::Path, sync::Arc};

use safetensors::Dtype;
use serde::Deserialize;

use super::{container::list_in, names};
use crate::{
    config::LanguageConfig,
    encoding::Encoding,
    error::{ModelError, Result},
    mmap::Map,
    tensor::Bytes,
    weights::{Entry, Kind, TensorFiles, read_json, set_of},
};

#[derive(Deserialize)]
struct List {
    records: Vec<Shard>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shard {
    data_path: String,
    nbytes: u64,
    records: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    nbytes: usize,
    byte_offset: usize,
}

/// Whether the weights of the model in `folder` are in MLC's container.
pub(crate) fn is_here(folder: &Path) -> bool {
    list_in(folder).is_some()
}

/// Opens the weights of the model in `folder`, whose language model has this configuration.
///
/// # Errors
/// If a list or a shard is missing or damaged, or has a tensor whose name is not known.
pub(crate) fn open(folder: &Path, config: &LanguageConfig) -> Result<TensorFiles> {
    let path = list_in(folder).unwrap_or_else(|| folder.to_path_buf());
    let wrong = |message: String| ModelError::file(&path, message);
    if let Some(other) = set_of(folder) {
        return Err(wrong(format!("the folder has two sets of weights, MLC's shards and {other}: remove one")));
    }
    let list: List = serde_json::from_value(read_json(&path)?)
        .map_err(|error| wrong(format!("this is no list of MLC's shards: {error}")))?;
    let mut all = HashMap::new();
    for shard in list.records {
        let name = &shard.data_path;
        if name.is_empty() || name.contains(['/', '\\']) || name == ".." {
            return Err(wrong(format!("{name:?} is not the name of a file in the same folder")));
        }
        let file = folder.join(name);
        let map = File::open(&file).and_then(|file| Map::of(&file)).map_err(ModelError::io(&file))?;
        if map.len() as u64 != shard.nbytes {
            let message = format!("it has {} bytes, and its list says {}: download it again", map.len(), shard.nbytes);
            return Err(ModelError::file(&file, message));
        }
        let (file, map) = (Arc::new(file), Arc::new(map));
        for record in shard.records {
            let name = record.name.clone();
            let entry =
                entry(&file, &map, record).map_err(|message| wrong(format!("the tensor {name:?} {message}")))?;
            for (ours, entry) in
                parts(config, &name, entry).map_err(|message| wrong(format!("the tensor {name:?} {message}")))?
            {
                if all.insert(ours, entry).is_some() {
                    return Err(wrong(format!("it has the tensor {name:?} twice")));
                }
            }
        }
    }
    Ok(TensorFiles::of_entries(folder.to_path_buf(), all))
}

fn entry(file: &Arc<std::path::PathBuf>, map: &Arc<Map>, record: Record) -> std::result::Result<Entry, String> {
    let (kind, width) = match record.dtype.as_str() {
        "float16" => (Kind::Numbers(Encoding::F16), 2),
        "uint32" => (Kind::Other(Dtype::U32), 4),
        other => return Err(format!("has the type {other:?}; only float16 and uint32 are read")),
    };
    let size = record.shape.iter().try_fold(width, |size: usize, length| size.checked_mul(*length));
    let end = record.byte_offset.checked_add(record.nbytes).filter(|end| *end <= map.len());
    let (true, Some(end)) = (size == Some(record.nbytes), end) else {
        return Err(format!("does not have the size of its shape {:?}, or is not within its shard", record.shape));
    };
    let bytes = Bytes::mapped(map.clone(), record.byte_offset..end);
    Ok(Entry { file: file.clone(), kind, shape: record.shape, bytes })
}

/// The tensors of ours whose rows a tensor has.
fn parts(config: &LanguageConfig, name: &str, entry: Entry) -> std::result::Result<Vec<(String, Entry)>, String> {
    let (module, part) = name.rsplit_once('.').unwrap_or((name, ""));
    let ours = names::to_ours(config.family, module);
    match &ours[..] {
        [] => Err("is not known in a model of this family".into()),
        [one] => Ok(vec![(format!("{one}.{part}"), entry)]),
        several => {
            let rows: Vec<usize> = several.iter().filter_map(|name| outputs(config, name)).collect();
            let all: usize = rows.iter().sum();
            if rows.len() != several.len() || entry.shape.first() != Some(&all) {
                return Err(format!("has the shape {:?}, but config.json says {all} rows", entry.shape));
            }
            let starts = rows.iter().scan(0, |end, rows| {
                *end += rows;
                Some(*end - rows..*end)
            });
            Ok(several.iter().zip(starts).map(|(name, rows)| (format!("{name}.{part}"), entry.rows(rows))).collect())
        }
    }
}

/// Rows of a layer of a block.
fn outputs(config: &LanguageConfig, name: &str) -> Option<usize> {
    let layer = config.family.block_layers().iter().find(|layer| name.ends_with(&format!(".{}", layer.name)))?;
    Some(config.linear_shape(layer).0)
}
