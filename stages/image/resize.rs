//! Resizing with the same bytes as Pillow's `Image.resize(size, BICUBIC)`, whose kernel is the cubic convolution of Keys (1981)
//! with a = -0.5, or `BILINEAR`. Works on RGB rows; independent of formats and models.

#![allow(clippy::inline_always, reason = "SIMD reaches only what is inlined")]

use image::RgbImage;
use imp_model::config::Filter;
use pulp::{Arch, Simd, WithSimd};

/// Fixed-point bits of a weight: 32, less 8 for the pixel and 2 for the kernel's overshoot.
const PRECISION: u32 = 32 - 8 - 2;
/// Rows that are resized together: as many as fit the first-level cache.
const ROWS: usize = 32;
/// The most pixels of rows that are resized together, where rows are very long.
const PIXELS: usize = 1 << 20;

/// What becomes of a line of pixels: it is resized to `to` pixels, of which `kept` from `start` are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) to: u64,
    pub(super) start: u64,
    pub(super) kept: u32,
}

impl Axis {
    /// All of a line that is resized to `to` pixels.
    pub(super) fn whole(to: u32) -> Self {
        Self { to: to.into(), start: 0, kept: to }
    }

    /// The `kept` pixels in the middle of a line that is resized to `to` pixels, which are at least as many.
    pub(super) fn middle(to: u64, kept: u32) -> Self {
        Self { to, start: to.saturating_sub(kept.into()) / 2, kept }
    }

    /// Whether a line of `from` pixels stays as it is.
    fn keeps(self, from: u32) -> bool {
        self == Self::whole(from)
    }
}

/// Resizes along rows, then along columns, rounded to u8 in between. Shrinking widens the kernel (antialiasing).
pub(super) fn resize(image: &RgbImage, across: Axis, down: Axis, filter: Filter) -> RgbImage {
    Arch::new().dispatch(Resize { image, across, down, filter })
}

/// [`resize`], compiled for the widest SIMD that the processor has.
struct Resize<'a> {
    image: &'a RgbImage,
    across: Axis,
    down: Axis,
    filter: Filter,
}

impl WithSimd for Resize<'_> {
    type Output = RgbImage;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> RgbImage {
        let Self { image, across, down, filter } = self;
        let (width, height) = image.dimensions();
        let wide = (!across.keeps(width)).then(|| along_rows(image, &taps(width, across, filter), [0; 3]));
        let wide = wide.as_ref().unwrap_or(image);
        if down.keeps(height) {
            return wide.clone();
        }
        along_columns(wide, &taps(height, down, filter), &vec![0; 3 * across.kept as usize])
    }
}

/// Resizes as if the image were in the middle of the smallest square around it, of one `colour`, of which each side becomes `axis`.
/// That square is never made: around a line of 65,535 pixels it would take 12 GB.
pub(super) fn resize_padded(image: &RgbImage, colour: [u8; 3], axis: Axis, filter: Filter) -> RgbImage {
    Arch::new().dispatch(ResizePadded { image, colour, axis, filter })
}

/// [`resize_padded`], compiled for the widest SIMD that the processor has.
struct ResizePadded<'a> {
    image: &'a RgbImage,
    colour: [u8; 3],
    axis: Axis,
    filter: Filter,
}

impl WithSimd for ResizePadded<'_> {
    type Output = RgbImage;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> RgbImage {
        let (width, height) = self.image.dimensions();
        let side = width.max(height);
        let whole = taps(side, self.axis, self.filter);
        // The row that every row beside the image becomes.
        let row = whole.iter().flat_map(|taps| {
            let sum = taps.weights.iter().sum::<i32>();
            self.colour.map(|value| clip(HALF + i32::from(value) * sum))
        });
        let row: Vec<u8> = row.collect();
        let [across, down] =
            [width, height].map(|length| within(&whole, ((side - length) / 2) as usize, length as usize));
        let wide = along_rows(self.image, &across, self.colour);
        along_columns(&wide, &down, &row)
    }
}

/// One output pixel: `weights` over source pixels from `first`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
    /// The sum of the weights of pixels beside the image.
    beside: i32,
}

/// The same weights for an image that covers `length` positions from `start`.
fn within(taps: &[Taps], start: usize, length: usize) -> Vec<Taps> {
    let one = |taps: &Taps| {
        let (first, end) = (taps.first, taps.first + taps.weights.len());
        let (from, to) = (first.clamp(start, start + length), end.clamp(start, start + length));
        let weights = taps.weights.get(from - first.min(from)..to - first.min(to)).unwrap_or_default().to_vec();
        let beside = taps.weights.iter().sum::<i32>() - weights.iter().sum::<i32>();
        Taps { first: from - start, weights, beside }
    };
    taps.iter().map(one).collect()
}

#[inline(always)]
fn along_rows(image: &RgbImage, taps: &[Taps], beside: [u8; 3]) -> RgbImage {
    let mut out = RgbImage::new(taps.len() as u32, image.height());
    let (from, to) = (image.width() as usize, taps.len());
    let rows = (PIXELS / from).clamp(1, ROWS);
    let (mut lying, mut resized, beside) = (vec![0; 3 * rows * from], vec![0; 3 * rows * to], beside.repeat(rows));
    for (rows, out) in image.as_raw().chunks(3 * rows * from).zip(out.chunks_mut(3 * rows * to)) {
        let count = rows.len() / (3 * from);
        transpose(rows, from, &mut lying[..rows.len()]);
        weigh(&lying[..rows.len()], taps, &beside[..3 * count], &mut resized[..out.len()]);
        transpose(&resized[..out.len()], count, out);
    }
    out
}

#[inline(always)]
fn along_columns(image: &RgbImage, taps: &[Taps], beside: &[u8]) -> RgbImage {
    let mut out = RgbImage::new(image.width(), taps.len() as u32);
    weigh(image.as_raw(), taps, beside, &mut out);
    out
}

/// Makes a row of `out` for each of `taps`: a weighted sum of rows that are as long as `beside`, the row that continues the image.
#[inline(always)]
fn weigh(image: &[u8], taps: &[Taps], beside: &[u8], out: &mut [u8]) {
    let stride = beside.len();
    let mut sums = vec![0; stride];
    for (to, tap) in out.chunks_exact_mut(stride).zip(taps) {
        for (sum, value) in sums.iter_mut().zip(beside) {
            *sum = HALF + i32::from(*value) * tap.beside;
        }
        for (row, weight) in image[stride * tap.first..].chunks_exact(stride).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (value, sum) in to.iter_mut().zip(&sums) {
            *value = clip(*sum);
        }
    }
}

/// Makes columns of rows: of pixels in rows of `width`.
fn transpose(image: &[u8], width: usize, out: &mut [u8]) {
    let height = image.len() / (3 * width);
    let out = out.as_chunks_mut::<3>().0;
    for (y, row) in image.as_chunks::<3>().0.chunks_exact(width).enumerate() {
        for (pixel, column) in row.iter().zip(out.chunks_exact_mut(height)) {
            column[y] = *pixel;
        }
    }
}

const HALF: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The weights of the kept output positions of a line of `from` source positions, normalised to a sum of 1.
fn taps(from: u32, axis: Axis, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(from) / axis.to as f64;
    let stretch = scale.max(1.0);
    let (kernel, reach): (fn(f64) -> f64, f64) = match filter {
        Filter::Bilinear => (triangle, 1.0),
        Filter::Bicubic => (cubic, 2.0),
    };
    let support = reach * stretch;
    let one = |position: u64| {
        let center = (position as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from as usize);
        let weights: Vec<f64> = (first..end).map(|source| kernel((source as f64 - center + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = weights.iter().map(|weight| (weight / sum * f64::from(1_u32 << PRECISION)).round() as i32);
        Taps { first, weights: fixed.collect(), beside: 0 }
    };
    (axis.start..axis.start + u64::from(axis.kept)).map(one).collect()
}

/// Linear interpolation.
fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' kernel, a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
