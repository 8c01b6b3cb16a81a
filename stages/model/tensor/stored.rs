//! Frozen weights in a file's encoding, decoded to f32 tile by tile when used. Independent of the encodings' formulas,
//! which are in [`crate::encoding`].

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use super::{
    Place,
    device::{DeviceWeight, stored_as},
};
use crate::{
    encoding::{Encoding, Operand, q4f16, q4f16_dot, q4f16_operand},
    mmap::Map,
    precision::Precision,
};

/// A part of a shared owner of bytes: a memory map or a buffer.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// The owner, if it is a mapped file.
    map: Option<Arc<Map>>,
    range: Range<usize>,
}

impl Bytes {
    /// The part `range` of `owner`.
    ///
    /// # Panics
    /// If the range exceeds `owner`, which callers rule out by checking the file's header.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        assert!(range.end <= (*owner).as_ref().len(), "the range exceeds the file");
        Self { owner, map: None, range }
    }

    /// The part `range` of a mapped file.
    pub(crate) fn mapped(map: Arc<Map>, range: Range<usize>) -> Self {
        Self { map: Some(map.clone()), ..Self::new(map, range) }
    }

    /// Takes the pages of these bytes out of memory, if a file has them.
    pub(crate) fn release(&self) {
        if let Some(map) = &self.map {
            map.release(&self.range);
        }
    }

    /// A part of these bytes.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let start = self.range.start;
        Self { owner: self.owner.clone(), map: self.map.clone(), range: start + range.start..start + range.end }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

/// A frozen matrix `[rows, cols]` in a file's encoding.
#[derive(Clone)]
pub struct Stored {
    rows: usize,
    cols: usize,
    content: Content,
    place: Place,
    /// The copy at `place`, if that is a device.
    on_device: Option<DeviceWeight>,
}

#[derive(Clone)]
enum Content {
    Plain(Encoding, Bytes),
    Q4f16 { levels: Bytes, scales: Bytes },
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content =
            if let Content::Plain(encoding, _) = &self.content { format!("{encoding:?}") } else { "Q4f16".into() };
        write!(f, "Stored([{}, {}] {content})", self.rows, self.cols)
    }
}

impl Stored {
    /// A matrix of consecutive values in `encoding`.
    ///
    /// # Panics
    /// If rows do not fill whole blocks, or the number of bytes does not match, which callers rule out.
    pub fn plain(rows: usize, cols: usize, encoding: Encoding, bytes: Bytes) -> Self {
        let needed = encoding.bytes(cols).map(|row| row * rows);
        assert_eq!(needed, Some(bytes.get().len()), "the number of bytes of a [{rows}, {cols}] matrix in {encoding:?}");
        Self::new(rows, cols, Content::Plain(encoding, bytes))
    }

    /// A matrix in [`q4f16`]: levels `[rows, words_per_row]` in u32 and scales `[rows, scales_per_row]` in f16.
    pub fn q4f16(rows: usize, cols: usize, levels: Bytes, scales: Bytes) -> Self {
        Self::new(rows, cols, Content::Q4f16 { levels, scales })
    }

    fn new(rows: usize, cols: usize, content: Content) -> Self {
        Self { rows, cols, content, place: Place::default(), on_device: None }
    }

    /// Where the weight lies.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The same weight at `place`: on a device, a copy of it.
    pub(super) fn to(&self, place: &Place) -> Self {
        let upload = |device| DeviceWeight::upload(device, self, stored_as(place.precision));
        Self { on_device: place.device.as_ref().map(upload), place: place.clone(), ..self.clone() }
    }

    /// The copy on a device.
    pub(super) fn on_device(&self) -> Option<&DeviceWeight> {
        self.on_device.as_ref()
    }

    /// The bytes of all values, if they are stored in `encoding`, in native byte order.
    pub(super) fn raw(&self, encoding: Encoding) -> Option<&[u8]> {
        match &self.content {
            Content::Plain(own, bytes) if *own == encoding && cfg!(target_endian = "little") => Some(bytes.get()),
            _ => None,
        }
    }

    /// Levels and scales of a matrix in [`q4f16`].
    pub(super) fn q4f16_parts(&self) -> Option<(&[u8], &[u8])> {
        match &self.content {
            Content::Q4f16 { levels, scales } => Some((levels.get(), scales.get())),
            Content::Plain(..) => None,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values without a copy, if they are stored as aligned f32 in native byte order.
    pub(super) fn in_place(&self) -> Option<&[f32]> {
        self.raw(Encoding::F32).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok())
    }

    /// Decodes the rows from `start` that fill `to`.
    pub fn widen(&self, start: usize, to: &mut [f32]) {
        match &self.content {
            Content::Plain(encoding, bytes) => {
                let block = encoding.block();
                let [first, length] = [start * self.cols, to.len()].map(|count| count / block.values * block.bytes);
                encoding.widen(&bytes.get()[first..first + length], to);
            }
            Content::Q4f16 { levels, scales } => q4f16::widen(levels.get(), scales.get(), self.cols, start, to),
        }
    }

    /// What [`Stored::dot`] multiplies rows with, if it can without decoding them to memory. `values` are in this precision.
    pub(super) fn operand<'a>(&self, values: &'a [f32], precision: Precision) -> Option<Operand<'a>> {
        match &self.content {
            Content::Plain(encoding, _) => encoding.operand(values, precision),
            Content::Q4f16 { .. } => q4f16_operand(values, precision),
        }
    }

    /// The dot product of row `row` with what [`Stored::operand`] has made.
    pub(super) fn dot(&self, row: usize, with: &Operand<'_>) -> f32 {
        match &self.content {
            Content::Plain(encoding, bytes) => {
                let block = encoding.block();
                let length = self.cols / block.values * block.bytes;
                encoding.dot(&bytes.get()[row * length..(row + 1) * length], with)
            }
            Content::Q4f16 { levels, scales } => {
                let [words, factors] = [4 * q4f16::words_per_row(self.cols), 2 * q4f16::scales_per_row(self.cols)];
                let levels = &levels.get()[row * words..(row + 1) * words];
                q4f16_dot(levels, &scales.get()[row * factors..(row + 1) * factors], with)
            }
        }
    }

    /// Decodes the values of a row from column `start` that fill `to`. `start` is a multiple of 256, which all encodings' blocks
    /// divide.
    pub(super) fn widen_part(&self, row: usize, start: usize, to: &mut [f32]) {
        debug_assert!(start.is_multiple_of(256) && start + to.len() <= self.cols);
        match &self.content {
            Content::Plain(encoding, bytes) => {
                let block = encoding.block();
                let [first, length] =
                    [row * self.cols + start, to.len()].map(|count| count / block.values * block.bytes);
                encoding.widen(&bytes.get()[first..first + length], to);
            }
            Content::Q4f16 { levels, scales } => {
                let [words, factors] =
                    [q4f16::words_per_row, q4f16::scales_per_row].map(|of| (of(self.cols), of(start)));
                let levels = &levels.get()[4 * (row * words.0 + words.1)..];
                let scales = &scales.get()[2 * (row * factors.0 + factors.1)..];
                q4f16::widen(levels, scales, to.len(), 0, to);
            }
        }
    }

    /// Like [`Stored::widen`], in parallel.
    pub(super) fn widen_parallel(&self, start: usize, to: &mut [f32]) {
        const ROWS: usize = 16;
        to.par_chunks_mut(ROWS * self.cols).enumerate().for_each(|(chunk, to)| self.widen(start + chunk * ROWS, to));
    }

    /// Some rows in f32, for who needs them once: their pages of a mapped file then leave the memory of this process.
    pub(super) fn read_once(&self, rows: Range<usize>) -> Vec<f32> {
        let mut values = vec![0.0; rows.len() * self.cols];
        self.widen(rows.start, &mut values);
        match &self.content {
            Content::Plain(encoding, bytes) => {
                let block = encoding.block();
                let row = self.cols / block.values * block.bytes;
                bytes.part(rows.start * row..rows.end * row).release();
            }
            Content::Q4f16 { levels, scales } => {
                let [words, factors] = [4 * q4f16::words_per_row(self.cols), 2 * q4f16::scales_per_row(self.cols)];
                levels.part(rows.start * words..rows.end * words).release();
                scales.part(rows.start * factors..rows.end * factors).release();
            }
        }
        values
    }

    /// All values in f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        self.widen_parallel(0, &mut values);
        values
    }
}
