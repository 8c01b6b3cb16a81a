//! The artifact of `preprocess`: training records in a few files, read at random without loading them.
//! Independent of templates, tensors and batches.
//!
//! ```text
//! meta.json      how the records were made, and their numbers (see [`Meta`])
//! index.bin      header; an entry per record; an entry per image
//! records.bin    for each record: input ids (i32), labels (i32), image numbers (u32), the id (UTF-8, padded to 4)
//! images.bin     the original image files (PNG, JPEG, ...), each once even if many records show it
//! features.bin   the features of each image, if requested (see [`super::features`])
//! rejected.jsonl records that could not be used, if any
//! ```
//! All numbers are little-endian. `records.bin` and `images.bin` are mapped, so a set opens in constant time and the
//! page cache keeps what training reads.

use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};
use imp_model::{Precision, config::TokenizerMark, tensor::IGNORE};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::mmap::map_file;
use crate::StageError;

/// The layout of the files.
pub(crate) const FORMAT: u32 = 1;
pub(super) const MAGIC: [u8; 8] = *b"IMP-RECS";
/// The file of the images' features.
pub(crate) const FEATURES: &str = "features.bin";
const REMEDY: &str = "the artifact is damaged: run `imp-flow cache verify`, then run the pipeline again";

/// `meta.json`: how the records were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Layout of the files.
    pub format: u32,
    /// The template, by its name in the configuration.
    pub template: String,
    /// How images become square: `square`, `pad` or `crop`.
    pub image_aspect_ratio: String,
    /// Longer sequences were cut to this many tokens (an image counting as one).
    pub max_length: usize,
    /// Records in the set.
    pub records: usize,
    /// Distinct images.
    pub images: usize,
    /// Tokens in all records, an image counting as one.
    pub tokens: u64,
    /// Tokens that have a label.
    pub labelled_tokens: u64,
    /// Records without any label because their token count did not match (see [`crate::text::template`]).
    pub mismatched: usize,
    /// Records that could not be used.
    pub rejected: usize,
    /// Records that lost labels because they were cut to `max_length`. Older sets don't say, as of the following counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<usize>,
    /// Records without any label, for whatever reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<usize>,
    /// Records with an image whose text does not say where it is, so that the model never sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_image_token: Option<usize>,
    /// The tokenizer that made the ids (see `text/identity.rs`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerMark>,
    /// What is in `features.bin`, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<FeatureMeta>,
}

/// How cached features were computed, in `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureMeta {
    /// Rows per image.
    pub patches: usize,
    /// Width of a row.
    pub width: usize,
    /// Which of the encoder's hidden states they are.
    pub mm_vision_select_layer: i64,
    /// How exactly they were computed.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

/// The first bytes of `index.bin`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) format: u32,
    pub(super) reserved: u32,
    pub(super) records: u64,
    pub(super) images: u64,
    pub(super) records_bytes: u64,
    pub(super) images_bytes: u64,
}

/// A record in `index.bin`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Entry {
    /// Where it begins in `records.bin`; a multiple of 4.
    pub(super) offset: u64,
    pub(super) tokens: u32,
    pub(super) images: u32,
    pub(super) id_bytes: u32,
    /// Words of the conversation, the unit in which the reference groups samples of like length.
    pub(super) words: u32,
}

/// An image in `index.bin`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ImageEntry {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// One training record, borrowed from the set.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// `id` of the annotation file.
    pub id: &'a str,
    /// Token ids; -200 stands for an image.
    pub input_ids: &'a [i32],
    /// Of the same length: the id to predict, or -100.
    pub labels: &'a [i32],
    image_numbers: &'a [u32],
    set: &'a RecordSet,
    /// The number of the set's first image.
    first_image: u32,
}

impl<'a> Record<'a> {
    /// The encoded image files, in the order of the image tokens. A record may have an image without a token.
    pub fn images(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let set = self.set;
        // `RecordSet::record` has checked the numbers.
        self.image_numbers.iter().map(move |number| set.image(*number as usize).unwrap_or_default())
    }

    /// The same record, with images numbered from `first`.
    pub(super) fn numbered_from(self, first: u32) -> Self {
        Self { first_image: first, ..self }
    }

    /// The cached features of its images, if there are any.
    pub fn features(&self) -> Option<impl Iterator<Item = &'a [f32]> + use<'a>> {
        let (set, numbers) = (self.set, self.image_numbers);
        set.meta.features.is_some().then(|| numbers.iter().filter_map(|number| set.features(*number as usize)))
    }

    /// The number of labelled tokens.
    pub fn learned(&self) -> usize {
        self.labels.iter().filter(|label| **label != IGNORE).count()
    }

    /// The images' numbers: equal numbers are the same image.
    pub fn image_numbers(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        let first = self.first_image;
        self.image_numbers.iter().map(move |number| first + number)
    }
}

/// An opened artifact of `preprocess`.
#[derive(Debug)]
pub struct RecordSet {
    folder: PathBuf,
    meta: Meta,
    header: Header,
    index: Mmap,
    records: Mmap,
    images: Mmap,
    features: Option<Mmap>,
}

impl RecordSet {
    /// Opens the folder in constant time. Checks sizes; each record is checked when it is read.
    ///
    /// # Errors
    /// If a file is missing, cut short, or of another format.
    pub fn open(folder: &Path) -> Result<Self, StageError> {
        let meta_path = folder.join("meta.json");
        let text = std::fs::read(&meta_path).map_err(|error| missing(&meta_path, error))?;
        let meta: Meta = serde_json::from_slice(&text)
            .map_err(|error| StageError::input(&meta_path, format!("not a record set: {error}"), REMEDY))?;
        let map = |name: &str| {
            let path = folder.join(name);
            map_file(&path).map_err(|error| missing(&path, error))
        };
        let index = map("index.bin")?;
        let damaged = |message: &str| StageError::input(folder.join("index.bin"), message, REMEDY);
        let header: Header = index
            .get(..size_of::<Header>())
            .map(bytemuck::pod_read_unaligned)
            .ok_or_else(|| damaged("the file is cut short"))?;
        if header.magic != MAGIC || header.format != FORMAT {
            return Err(damaged("this is not an index of records of this version"));
        }
        let features = meta.features.is_some().then(|| map(FEATURES)).transpose()?;
        let set = Self {
            folder: folder.to_path_buf(),
            meta,
            features,
            header,
            index,
            records: map("records.bin")?,
            images: map("images.bin")?,
        };
        set.check_sizes()?;
        Ok(set)
    }

    fn check_sizes(&self) -> Result<(), StageError> {
        let entries = self.header.records.checked_mul(size_of::<Entry>() as u64);
        let images = self.header.images.checked_mul(size_of::<ImageEntry>() as u64);
        let index = entries.zip(images).and_then(|(a, b)| a.checked_add(b)?.checked_add(size_of::<Header>() as u64));
        let mut sizes = vec![
            ("index.bin", self.index.len(), index),
            ("records.bin", self.records.len(), Some(self.header.records_bytes)),
            ("images.bin", self.images.len(), Some(self.header.images_bytes)),
        ];
        if let Some(features) = &self.features {
            let bytes = self.header.images.checked_mul(self.feature_bytes() as u64);
            sizes.push((FEATURES, features.len(), bytes));
        }
        for (name, found, expected) in sizes {
            if expected != Some(found as u64) {
                let expected = expected.map_or("an impossible size".into(), |bytes| format!("{bytes} bytes"));
                let message = format!("the file has {found} bytes, but its index says {expected}");
                return Err(StageError::input(self.folder.join(name), message, REMEDY));
            }
        }
        Ok(())
    }

    /// How the records were made.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.header.records as usize
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Record `number`, from 0.
    ///
    /// # Errors
    /// If the set has fewer, or its files are damaged.
    pub fn record(&self, number: usize) -> Result<Record<'_>, StageError> {
        self.try_record(number).ok_or_else(|| {
            let message = format!("record {number} of {} can't be read", self.len());
            StageError::input(self.folder.join("records.bin"), message, REMEDY)
        })
    }

    fn try_record(&self, number: usize) -> Option<Record<'_>> {
        let entry = self.entries().get(number)?;
        let (tokens, images) = (entry.tokens as usize, entry.images as usize);
        let bytes = self.records.get(usize::try_from(entry.offset).ok()?..)?;
        let (input_ids, bytes) = bytes.split_at_checked(4 * tokens)?;
        let (labels, bytes) = bytes.split_at_checked(4 * tokens)?;
        let (numbers, bytes) = bytes.split_at_checked(4 * images)?;
        let image_numbers: &[u32] = bytemuck::try_cast_slice(numbers).ok()?;
        if image_numbers.iter().any(|number| self.image(*number as usize).is_none()) {
            return None;
        }
        Some(Record {
            id: std::str::from_utf8(bytes.get(..entry.id_bytes as usize)?).ok()?,
            input_ids: bytemuck::try_cast_slice(input_ids).ok()?,
            labels: bytemuck::try_cast_slice(labels).ok()?,
            image_numbers,
            set: self,
            first_image: 0,
        })
    }

    /// The number of tokens of each record, an image counting as one.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.entries().iter().map(|entry| entry.tokens as usize)
    }

    /// The number of tokens (an image counting as one) and of images of each record.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + '_ {
        self.entries().iter().map(|entry| (entry.tokens as usize, entry.images as usize))
    }

    /// The length of each record as the reference's `group_by_modality_length` measures it: words of the conversation,
    /// negative for a record without an image.
    pub fn modality_lengths(&self) -> impl ExactSizeIterator<Item = i64> + '_ {
        self.entries().iter().map(|entry| i64::from(entry.words) * if entry.images == 0 { -1 } else { 1 })
    }

    fn entries(&self) -> &[Entry] {
        let start = size_of::<Header>();
        let bytes = self.index.get(start..start + self.len() * size_of::<Entry>()).unwrap_or_default();
        bytemuck::try_cast_slice(bytes).unwrap_or_default()
    }

    /// The cached features of image `number`, `[patches * width]`, if there are any.
    pub fn features(&self, number: usize) -> Option<&[f32]> {
        let bytes = self.feature_bytes();
        let start = number.checked_mul(bytes)?;
        bytemuck::try_cast_slice(self.features.as_ref()?.get(start..start.checked_add(bytes)?)?).ok()
    }

    /// Bytes of one image's features.
    fn feature_bytes(&self) -> usize {
        let meta = self.meta.features.as_ref();
        meta.map_or(0, |meta| meta.patches.saturating_mul(meta.width).saturating_mul(size_of::<f32>()))
    }

    /// The encoded file of image `number`.
    pub(crate) fn image(&self, number: usize) -> Option<&[u8]> {
        let start = size_of::<Header>() + self.len() * size_of::<Entry>();
        let entries: &[ImageEntry] = bytemuck::try_cast_slice(self.index.get(start..)?).ok()?;
        let entry = entries.get(number)?;
        let start = usize::try_from(entry.offset).ok()?;
        self.images.get(start..start.checked_add(usize::try_from(entry.bytes).ok()?)?)
    }
}

fn missing(path: &Path, error: std::io::Error) -> StageError {
    if error.kind() == std::io::ErrorKind::NotFound {
        return StageError::input(path, "the file is missing", "this input must be the output of a `preprocess` stage");
    }
    StageError::Io { path: path.to_path_buf(), source: error }
}
