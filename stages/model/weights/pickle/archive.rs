//! The files in a `torch.save` archive: a zip whose files are stored, not compressed, so that they can be read in place.
//! Independent of what they mean.

use std::{collections::HashMap, io::Cursor, ops::Range};

use zip::{CompressionMethod, ZipArchive};

/// The list of tensors.
const LIST: &str = "data.pkl";
/// Every weight of a model needs some hundred bytes in the list.
const LARGEST_LIST: usize = 16 << 20;
/// A model has one file per weight, and a few more.
const MOST_FILES: usize = 1 << 20;

/// Where the files of an archive lie in it.
pub(super) struct Archive {
    /// The list of tensors, in pickle.
    pub(super) list: Range<usize>,
    /// The values of each storage, by its key.
    storages: HashMap<String, Range<usize>>,
}

impl Archive {
    /// Reads the directory of the archive.
    ///
    /// # Errors
    /// In words, if this is not a whole archive of `torch.save`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let broken = |error: zip::result::ZipError| format!("this is not a whole zip archive ({error}): copy it again");
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
        if zip.len() > MOST_FILES {
            return Err(format!("it has {} files, and at most {MOST_FILES} are read", zip.len()));
        }
        let mut files = HashMap::new();
        for index in 0..zip.len() {
            let file = zip.by_index_raw(index).map_err(broken)?;
            let name = file.name().map_err(broken)?.into_owned();
            // What isn't stored as it is stays unknown, and is missed if it is needed.
            if file.compression() == CompressionMethod::Stored
                && !file.encrypted()
                && file.size() == file.compressed_size()
            {
                let range = file.data_start().and_then(|start| within(start, file.size(), bytes.len()));
                let range = range.ok_or_else(|| format!("its file {name:?} is cut off: copy it again"))?;
                if files.insert(name.clone(), range).is_some() {
                    return Err(format!("it has two files named {name:?}"));
                }
            }
        }
        Self::of_files(bytes, &files)
    }

    fn of_files(bytes: &[u8], files: &HashMap<String, Range<usize>>) -> Result<Self, String> {
        let mut roots = files.keys().filter_map(|name| name.strip_suffix(LIST)?.strip_suffix('/'));
        let (Some(root), None) = (roots.next(), roots.next()) else {
            return Err("this is a zip archive, but not one that `torch.save` has made: it has no list of tensors, \
                        `data.pkl`, that is stored as it is"
                .into());
        };
        let file = |name: &str| files.get(&format!("{root}/{name}"));
        if let Some(order) = file("byteorder").filter(|range| &bytes[(*range).clone()] != b"little") {
            let order = String::from_utf8_lossy(&bytes[order.start..order.end.min(order.start + 16)]).into_owned();
            return Err(format!("its numbers have the byte order {order:?}; only `little` is read"));
        }
        if file("constants.pkl").is_some() {
            return Err("this is a TorchScript program, not weights: save the model's `state_dict()`".into());
        }
        let list = file(LIST).cloned().unwrap_or_default();
        if list.len() > LARGEST_LIST {
            return Err(format!("its list of tensors has {} bytes, and at most {LARGEST_LIST} are read", list.len()));
        }
        let folder = format!("{root}/data/");
        let storages =
            files.iter().filter_map(|(name, range)| Some((name.strip_prefix(&folder)?.into(), range.clone())));
        Ok(Self { list, storages: storages.collect() })
    }

    /// Where the values of the storage `key` lie.
    pub(super) fn storage(&self, key: &str) -> Option<Range<usize>> {
        self.storages.get(key).cloned()
    }
}

/// The range of `length` bytes from `start`, if a file of `whole` bytes has them.
fn within(start: u64, length: u64, whole: usize) -> Option<Range<usize>> {
    let end = usize::try_from(start.checked_add(length)?).ok().filter(|end| *end <= whole)?;
    Some(usize::try_from(start).ok()?..end)
}
