//! Writes converted records in order, and counts them and what is lost. Independent of how a record is converted.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use imp_model::{IMAGE_TOKEN, tensor::IGNORE};

use super::{
    config::PreprocessConfig,
    lost::{Lost, Reason},
    rejected::Rejects,
};
use crate::{
    Job, StageError,
    data::{
        records::{FORMAT, Meta},
        writer::{NewRecord, RecordWriter},
    },
    text::template::Encoded,
};

/// The images that are in the set: prefix of the path's hash -> image number. Whole paths would take several times the
/// memory.
pub(super) type Known = HashMap<[u8; 16], u32>;

pub(super) fn name_of(path: &Path) -> [u8; 16] {
    let mut name = [0; 16];
    blake3::Hasher::new().update(path.as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut name);
    name
}

/// A record ready to be written.
pub(super) struct Converted {
    pub(super) id: String,
    pub(super) encoded: Encoded,
    /// Path, and the file's content unless it is in the set already.
    pub(super) images: Vec<(PathBuf, Option<Vec<u8>>)>,
    pub(super) words: usize,
    /// Why it has no label, if it has none.
    pub(super) masked: Option<Reason>,
    /// Whether the text mentions an image although the record has none.
    pub(super) mentions_image: bool,
}

/// The records that match `leave_out`.
pub(super) struct LeftOut {
    records: usize,
    /// The patterns, and whether any record matched.
    patterns: Vec<(String, bool)>,
}

impl LeftOut {
    pub(super) fn add(&mut self, patterns: Vec<usize>) {
        self.records += 1;
        for pattern in patterns {
            self.patterns[pattern].1 = true;
        }
    }

    /// A mistyped pattern would otherwise show much later.
    fn check(&self, annotations: &Path) -> Result<(), StageError> {
        let Some((pattern, _)) = self.patterns.iter().find(|(_, used)| !used) else { return Ok(()) };
        let message = format!("`{pattern}` in `leave_out` matches no record's image");
        Err(StageError::input(annotations, message, "patterns are compared with `image` as it stands in the records"))
    }
}

/// Writes records in order and counts them.
pub(super) struct RecordSink {
    folder: PathBuf,
    max_rejected: usize,
    writer: RecordWriter,
    pub(super) image_numbers: Known,
    pub(super) rejects: Rejects,
    pub(super) left_out: LeftOut,
    lost: Lost,
    pub(super) meta: Meta,
}

impl RecordSink {
    pub(super) fn create(config: &PreprocessConfig, folder: &Path) -> Result<Self, StageError> {
        let meta = Meta {
            format: FORMAT,
            template: config.template.name().into(),
            image_aspect_ratio: config.image_aspect_ratio.name().into(),
            max_length: config.max_length,
            records: 0,
            images: 0,
            tokens: 0,
            labelled_tokens: 0,
            mismatched: 0,
            rejected: 0,
            cut: None,
            masked: None,
            without_image_token: None,
            tokenizer: None,
            features: None,
        };
        Ok(Self {
            folder: folder.to_path_buf(),
            max_rejected: config.max_rejected,
            writer: RecordWriter::create(folder)?,
            image_numbers: Known::new(),
            rejects: Rejects::default(),
            left_out: LeftOut {
                records: 0,
                patterns: config.leave_out.iter().map(|pattern| (pattern.clone(), false)).collect(),
            },
            lost: Lost::default(),
            meta,
        })
    }

    /// The number of the next record in the annotation file, counted from 1.
    pub(super) fn number(&self) -> usize {
        self.meta.records + self.rejects.len() + self.left_out.records + 1
    }

    pub(super) fn add(&mut self, record: Converted) -> Result<(), StageError> {
        let mut images = Vec::new();
        for (path, bytes) in record.images {
            let name = name_of(&path);
            let number = match (self.image_numbers.get(&name), bytes) {
                (Some(number), _) => *number,
                (None, bytes) => {
                    let number = self.writer.add_image(bytes.unwrap_or_default())?;
                    self.image_numbers.insert(name, number);
                    number
                }
            };
            images.push(number);
        }
        let Encoded { input_ids, labels, mismatched, whole } = &record.encoded;
        let number = self.number();
        self.meta.records += 1;
        self.meta.mismatched += usize::from(*mismatched);
        if let Some(reason) = record.masked {
            self.lost.add_masked(reason, number, &record.id);
        }
        if *whole > input_ids.len() {
            self.lost.add_cut(*whole, number, &record.id);
        }
        if !images.is_empty() && !input_ids.contains(&IMAGE_TOKEN) {
            self.lost.add_without_token(number, &record.id);
        }
        if record.mentions_image {
            self.lost.add_without_image(number, &record.id);
        }
        self.meta.tokens += input_ids.len() as u64;
        self.meta.labelled_tokens += labels.iter().filter(|label| **label != IGNORE).count() as u64;
        self.writer.add_record(&NewRecord { id: &record.id, input_ids, labels, images: &images, words: record.words })
    }

    pub(super) fn finish(mut self, job: &Job, annotations: &Path) -> Result<(), StageError> {
        if self.rejects.len() > self.max_rejected {
            return Err(self.rejects.error(annotations.to_path_buf(), self.max_rejected));
        }
        self.left_out.check(annotations)?;
        if self.meta.records == 0 {
            let help = match self.left_out.records {
                0 => "give a file with at least one conversation",
                _ => "`leave_out` matches every record that could be used: give narrower patterns",
            };
            return Err(StageError::input(annotations, "no records to train on", help));
        }
        let (lost, records, max_length) = (&self.lost, self.meta.records, self.meta.max_length);
        if lost.masked() == records {
            return Err(lost.nothing_left(annotations, records, max_length));
        }
        self.warn_of_rejects(job, annotations);
        lost.warn(job, annotations, records, max_length);
        self.meta.images = self.image_numbers.len();
        self.meta.rejected = self.rejects.len();
        self.meta.cut = Some(lost.cut());
        self.meta.masked = Some(lost.masked());
        self.meta.without_image_token = Some(lost.without_token());
        self.rejects.write(&self.folder)?;
        for (name, value) in [
            ("records", self.meta.records as f64),
            ("images", self.meta.images as f64),
            ("tokens", self.meta.tokens as f64),
            ("labelled_tokens", self.meta.labelled_tokens as f64),
            ("mismatched", self.meta.mismatched as f64),
            ("cut", lost.cut() as f64),
            ("masked", lost.masked() as f64),
            ("without_image_token", lost.without_token() as f64),
            ("rejected", self.meta.rejected as f64),
        ] {
            job.result(name, value);
        }
        if self.left_out.records > 0 {
            job.result("left_out", self.left_out.records as f64);
        }
        self.writer.finish(&self.meta)
    }

    fn warn_of_rejects(&self, job: &Job, annotations: &Path) {
        if self.rejects.len() > 0 {
            let (file, count) = (annotations.display(), self.rejects.len());
            let summary = self.rejects.summary();
            job.caution(format!("{file}: {count} unusable record(s) dropped, listed in rejected.jsonl\n{summary}"));
        }
    }
}
