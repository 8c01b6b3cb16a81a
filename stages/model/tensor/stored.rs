//! Frozen weights as they lie in a file: f32, f16, bf16 or 4 bits, widened to f32 when used.

use std::{ops::Range, sync::Arc};

use half::f16;
use rayon::prelude::*;

use super::math;

/// Values that are widened at a time: half a megabyte, to stay in a core's cache.
const TILE: usize = 1 << 17;
/// Weights that share a scale in `q4f16_1`.
const GROUP: usize = 32;

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
    /// If the range is outside: the reader checks headers before.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        assert!(range.end <= (*owner).as_ref().len(), "a tensor outside its file");
        Self { owner, range }
    }

    fn get(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

/// How the values are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Encoding {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Reads finite values from little-endian bytes.
    pub fn widen(self, bytes: &[u8], to: &mut [f32]) {
        match self {
            Self::F32 => to
                .iter_mut()
                .zip(bytes.chunks_exact(4))
                .for_each(|(to, b)| *to = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Self::F16 => math::simd(|| {
                for (to, b) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *to = widen_finite(u16::from_le_bytes(*b));
                }
            }),
            Self::Bf16 => math::simd(|| {
                for (to, b) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }),
        }
    }
}

/// A finite number in half precision: its exponent and mantissa moved to their places in an f32 are too small by the
/// difference of the two biases, a factor of 2^112. Subnormal ones come out right, too. Vectorises, as a conversion
/// that looks at each number would not.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorise only if it is inlined")]
fn widen_finite(half: u16) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * SCALE;
    f32::from_bits(magnitude.to_bits() | sign)
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
    /// `q4f16_1`: eight 4-bit values a u32, low nibble first, and one f16 scale a group of 32 along a row.
    Q4 {
        values: Bytes,
        scales: Bytes,
    },
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content =
            if let Content::Plain(encoding, _) = &self.content { format!("{encoding:?}") } else { "Q4".into() };
        write!(f, "Stored([{}, {}] {content})", self.rows, self.cols)
    }
}

impl Stored {
    /// Values one after the other.
    pub fn plain(rows: usize, cols: usize, encoding: Encoding, bytes: Bytes) -> Self {
        Self { rows, cols, content: Content::Plain(encoding, bytes) }
    }

    /// 4-bit values `[rows, ceil(cols / 32) * 4]` u32 and scales `[rows, ceil(cols / 32)]` f16.
    pub fn q4(rows: usize, cols: usize, values: Bytes, scales: Bytes) -> Self {
        Self { rows, cols, content: Content::Q4 { values, scales } }
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

    /// The rows from `start` in f32, as many as `to` holds.
    pub fn widen(&self, start: usize, to: &mut [f32]) {
        match &self.content {
            Content::Plain(encoding, bytes) => {
                let first = start * self.cols * encoding.size();
                encoding.widen(&bytes.get()[first..first + to.len() * encoding.size()], to);
            }
            Content::Q4 { values, scales } => {
                let groups = self.cols.div_ceil(GROUP);
                for (row, to) in to.chunks_mut(self.cols).enumerate() {
                    for (group, to) in to.chunks_mut(GROUP).enumerate() {
                        let index = (start + row) * groups + group;
                        let scale = &scales.get()[index * 2..index * 2 + 2];
                        let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
                        let nibbles = &values.get()[index * GROUP / 2..(index + 1) * GROUP / 2];
                        math::simd(|| widen_group(nibbles, scale, to));
                    }
                }
            }
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

/// The values of a group, or as many of them as a row has.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it vectorises only if it is inlined")]
fn widen_group(nibbles: &[u8], scale: f32, to: &mut [f32]) {
    let (pairs, last) = to.as_chunks_mut::<2>();
    for (to, byte) in pairs.iter_mut().zip(nibbles) {
        *to = [byte & 15, byte >> 4].map(|level| (f32::from(level) - 7.0) * scale);
    }
    if let ([last], Some(byte)) = (last, nibbles.get(pairs.len())) {
        *last = (f32::from(byte & 15) - 7.0) * scale;
    }
}

/// MLC's `q4f16_1`: per group of 32 along a row, scale = max|w| / 7 in f16, and `clamp(round(w / scale) + 7, 0, 14)`
/// in 4 bits. Returns the values as bytes of little-endian u32, and the scales as bytes of f16. A row whose width is no
/// multiple of 32 is filled up with zeros.
pub fn quantize_q4f16(weights: &[f32], cols: usize) -> (Vec<u8>, Vec<u8>) {
    let groups = cols.div_ceil(GROUP);
    let rows = weights.len() / cols.max(1);
    let mut values = vec![0_u8; rows * groups * GROUP / 2];
    let mut scales = vec![0_u8; rows * groups * 2];
    values
        .par_chunks_mut(groups * GROUP / 2)
        .zip(scales.par_chunks_mut(groups * 2))
        .zip(weights.par_chunks(cols))
        .for_each(|((values, scales), row)| {
            for ((values, scale), group) in
                values.chunks_mut(GROUP / 2).zip(scales.chunks_mut(2)).zip(row.chunks(GROUP))
            {
                quantize_group(group, values, scale);
            }
        });
    (values, scales)
}

fn quantize_group(group: &[f32], values: &mut [u8], scale_bytes: &mut [u8]) {
    // MLC computes in f16 throughout: so the scale, each quotient and each sum are rounded to f16 here.
    let half = |x: f32| f16::from_f32(x);
    let largest = group.iter().map(|w| half(*w).to_f32().abs()).fold(0.0, f32::max);
    let scale = half(largest / 7.0);
    scale_bytes.copy_from_slice(&scale.to_le_bytes());
    for (index, byte) in values.iter_mut().enumerate() {
        let level = |offset: usize| {
            let w = group.get(index * 2 + offset).copied().unwrap_or(0.0);
            if scale == f16::ZERO {
                return 0;
            }
            let quotient = half(half(w).to_f32() / scale.to_f32()).to_f32();
            half(quotient + 7.0).to_f32().round().clamp(0.0, 14.0) as u8
        };
        *byte = level(0) | (level(1) << 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for half in (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()) {
            assert_eq!(widen_finite(half).to_bits(), f16::from_bits(half).to_f32().to_bits(), "{half:#x}");
        }
    }
}
