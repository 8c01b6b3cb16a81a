//! Writes the artifact that [`super::records`] reads. Independent of where records come from.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use super::records::{Entry, FORMAT, Header, ImageEntry, MAGIC, Meta};
use crate::StageError;

/// Appends records. Memory grows by a few bytes per record, not by their content.
pub(crate) struct RecordWriter {
    folder: PathBuf,
    records: Output,
    images: Background,
    entries: Vec<Entry>,
    image_entries: Vec<ImageEntry>,
}

/// A record to write.
pub(crate) struct NewRecord<'a> {
    pub(crate) id: &'a str,
    pub(crate) input_ids: &'a [i32],
    pub(crate) labels: &'a [i32],
    pub(crate) images: &'a [u32],
    pub(crate) words: usize,
}

impl RecordWriter {
    pub(crate) fn create(folder: &Path) -> Result<Self, StageError> {
        Ok(Self {
            folder: folder.to_path_buf(),
            records: Output::create(folder.join("records.bin"))?,
            images: Background::over(Output::create(folder.join("images.bin"))?),
            entries: Vec::new(),
            image_entries: Vec::new(),
        })
    }

    /// Adds an encoded image and returns its number.
    pub(crate) fn add_image(&mut self, encoded: Vec<u8>) -> Result<u32, StageError> {
        self.image_entries.push(ImageEntry { offset: self.images.written, bytes: encoded.len() as u64 });
        self.images.write(encoded)?;
        Ok(self.image_entries.len() as u32 - 1)
    }

    pub(crate) fn add_record(&mut self, record: &NewRecord<'_>) -> Result<(), StageError> {
        self.entries.push(Entry {
            offset: self.records.written,
            tokens: record.input_ids.len() as u32,
            images: record.images.len() as u32,
            id_bytes: record.id.len() as u32,
            words: record.words as u32,
        });
        self.records.write(bytemuck::cast_slice(record.input_ids))?;
        self.records.write(bytemuck::cast_slice(record.labels))?;
        self.records.write(bytemuck::cast_slice(record.images))?;
        self.records.write(record.id.as_bytes())?;
        // Aligns the next record's numbers in the map.
        self.records.write(&[0; 3][..record.id.len().next_multiple_of(4) - record.id.len()])
    }

    /// Writes the index and `meta.json`.
    pub(crate) fn finish(self, meta: &Meta) -> Result<(), StageError> {
        let header = Header {
            magic: MAGIC,
            format: FORMAT,
            reserved: 0,
            records: self.entries.len() as u64,
            images: self.image_entries.len() as u64,
            records_bytes: self.records.written,
            images_bytes: self.images.written,
        };
        let mut index = Output::create(self.folder.join("index.bin"))?;
        index.write(bytemuck::bytes_of(&header))?;
        index.write(bytemuck::cast_slice(&self.entries))?;
        index.write(bytemuck::cast_slice(&self.image_entries))?;
        self.images.finish()?;
        for output in [self.records, index] {
            output.finish()?;
        }
        write_meta(&self.folder, meta)
    }
}

/// Writes `meta.json`.
pub(crate) fn write_meta(folder: &Path, meta: &Meta) -> Result<(), StageError> {
    let path = folder.join("meta.json");
    let text = serde_json::to_string_pretty(meta).unwrap_or_default() + "\n";
    std::fs::write(&path, text).map_err(StageError::io(&path))
}

/// A file that is written from front to back.
struct Output {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
}

impl Output {
    fn create(path: PathBuf) -> Result<Self, StageError> {
        let file = BufWriter::with_capacity(1 << 18, File::create(&path).map_err(StageError::io(&path))?);
        Ok(Self { path, file, written: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        self.file.write_all(bytes).map_err(StageError::io(&self.path))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<(), StageError> {
        self.file.flush().map_err(StageError::io(&self.path))
    }
}

/// The maximum number of images that wait to be written.
const WAITING: usize = 64;

/// A file that is written by its own thread, so that all cores continue to convert.
struct Background {
    /// Bytes that were handed to the thread.
    written: u64,
    waiting: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<Result<(), StageError>>>,
}

impl Background {
    fn over(mut output: Output) -> Self {
        let (waiting, arriving) = sync_channel::<Vec<u8>>(WAITING);
        let thread = thread::spawn(move || {
            arriving.iter().try_for_each(|bytes| output.write(&bytes))?;
            output.finish()
        });
        Self { written: 0, waiting, thread: Some(thread) }
    }

    fn write(&mut self, bytes: Vec<u8>) -> Result<(), StageError> {
        self.written += bytes.len() as u64;
        // The thread leaves before the end only if it can't write.
        if self.waiting.send(bytes).is_ok() { Ok(()) } else { Self::outcome(self.thread.take()) }
    }

    fn finish(self) -> Result<(), StageError> {
        drop(self.waiting);
        Self::outcome(self.thread)
    }

    fn outcome(thread: Option<JoinHandle<Result<(), StageError>>>) -> Result<(), StageError> {
        let outcome = thread.and_then(|thread| thread.join().ok());
        outcome.unwrap_or_else(|| Err(StageError::failed("images.bin can't be written", "run it again")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_disk_is_told_by_its_file() {
        let mut images = Background::over(Output::create("/dev/full".into()).unwrap());
        let mut write = || images.write(vec![0; 1 << 16]);
        let error = (0..1000).find_map(|_| write().err()).unwrap();
        assert!(error.to_string().starts_with("/dev/full: No space left"), "{error}");
        let mut images = Background::over(Output::create("/dev/full".into()).unwrap());
        images.write(vec![0; 10]).unwrap();
        assert!(images.finish().unwrap_err().to_string().starts_with("/dev/full: No space left"));
    }
}
