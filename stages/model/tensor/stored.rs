//! Frozen weights as they lie in a file, widened to f32 tile by tile when used. Independent of how they are encoded, which
//! is in [`crate::encoding`].

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use crate::encoding::{Encoding, q4f16};

/// Values that are widened at a time: half a megabyte, to stay in a core's cache.
const TILE: usize = 1 << 17;

/// Bytes that something else keeps alive: a memory map or a buffer.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The part `range` of `owner`.
    ///
    /// # Panics
    /// If the range is outside of `owner`: callers check the file's header first.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        assert!(range.end <= (*owner).as_ref().len(), "a tensor outside its file");
        Self { owner, range }
    }

    fn get(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

/// A frozen `[rows, cols]` matrix.
#[derive(Clone)]
pub struct Stored {
    rows: usize,
    cols: usize,
    content: Content,
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
    /// Values one after the other.
    ///
    /// # Panics
    /// If rows do not fill whole blocks, or there are not as many bytes: callers check both first.
    pub fn plain(rows: usize, cols: usize, encoding: Encoding, bytes: Bytes) -> Self {
        let needed = encoding.bytes(cols).map(|row| row * rows);
        assert_eq!(needed, Some(bytes.get().len()), "bytes of a [{rows}, {cols}] matrix in {encoding:?}");
        Self { rows, cols, content: Content::Plain(encoding, bytes) }
    }

    /// Levels `[rows, words_per_row]` u32 and scales `[rows, scales_per_row]` f16 of [`q4f16`].
    pub fn q4f16(rows: usize, cols: usize, levels: Bytes, scales: Bytes) -> Self {
        Self { rows, cols, content: Content::Q4f16 { levels, scales } }
    }

    /// Height.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, if they lie there as f32 that can be used without a copy.
    pub(super) fn in_place(&self) -> Option<&[f32]> {
        match &self.content {
            Content::Plain(Encoding::F32, bytes) if cfg!(target_endian = "little") => {
                bytemuck::try_cast_slice(bytes.get()).ok()
            }
            _ => None,
        }
    }

    /// The rows from `start` on in f32, as many as `to` holds.
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

    /// Rows to widen at a time.
    pub(super) fn tile_rows(&self) -> usize {
        (TILE / self.cols.max(1)).next_multiple_of(16).clamp(16, 128)
    }

    pub(super) fn widen_parallel(&self, start: usize, to: &mut [f32]) {
        const ROWS: usize = 16;
        to.par_chunks_mut(ROWS * self.cols).enumerate().for_each(|(chunk, to)| self.widen(start + chunk * ROWS, to));
    }

    /// All values in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        self.widen_parallel(0, &mut values);
        values
    }
}
