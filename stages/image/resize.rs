//! Bicubic resizing with the same bytes as Pillow's `Image.resize(size, BICUBIC)`, whose kernel is the cubic convolution
//! of Keys (1981) with a = -0.5. Works on RGB rows; independent of formats and models.

#![allow(clippy::inline_always, reason = "SIMD reaches only what is inlined")]

use image::RgbImage;
use pulp::{Arch, Simd, WithSimd};

/// Fixed-point bits of a weight: 32, less 8 for the pixel and 2 for the kernel's overshoot.
const PRECISION: u32 = 32 - 8 - 2;
/// Reach of the kernel on either side, in source pixels at scale 1.
const SUPPORT: f64 = 2.0;

/// Rows that are resized together: as many as fit the first-level cache.
const ROWS: usize = 32;

/// Resizes to `width` x `height`: first along rows, then along columns, rounded to u8 in between. Shrinking widens
/// the kernel (antialiasing).
pub(super) fn resize(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    Arch::new().dispatch(Resize { image, width, height })
}

/// [`resize`], compiled for the widest SIMD that the processor has.
struct Resize<'a> {
    image: &'a RgbImage,
    width: u32,
    height: u32,
}

impl WithSimd for Resize<'_> {
    type Output = RgbImage;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> RgbImage {
        let wide = (self.image.width() != self.width).then(|| along_rows(self.image, self.width));
        let wide = wide.as_ref().unwrap_or(self.image);
        if wide.height() == self.height { wide.clone() } else { along_columns(wide, self.height) }
    }
}

/// One output pixel: `weights` over source pixels from `first`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

#[inline(always)]
fn along_rows(image: &RgbImage, width: u32) -> RgbImage {
    let taps = taps(image.width(), width);
    let mut out = RgbImage::new(width, image.height());
    let (from, to) = (image.width() as usize, width as usize);
    let (mut lying, mut resized) = (vec![0; 3 * ROWS * from], vec![0; 3 * ROWS * to]);
    for (rows, out) in image.as_raw().chunks(3 * ROWS * from).zip(out.chunks_mut(3 * ROWS * to)) {
        let count = rows.len() / (3 * from);
        transpose(rows, from, &mut lying[..rows.len()]);
        weigh(&lying[..rows.len()], 3 * count, &taps, &mut resized[..out.len()]);
        transpose(&resized[..out.len()], count, out);
    }
    out
}

#[inline(always)]
fn along_columns(image: &RgbImage, height: u32) -> RgbImage {
    let mut out = RgbImage::new(image.width(), height);
    weigh(image.as_raw(), 3 * image.width() as usize, &taps(image.height(), height), &mut out);
    out
}

/// Makes a row of `out` for each of `taps`: a weighted sum of rows of `stride` bytes.
#[inline(always)]
fn weigh(image: &[u8], stride: usize, taps: &[Taps], out: &mut [u8]) {
    let mut sums = vec![0; stride];
    for (to, tap) in out.chunks_exact_mut(stride).zip(taps) {
        sums.fill(HALF);
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

/// The weights of each of `to` output positions over `from` source positions, normalised to a sum of 1.
fn taps(from: u32, to: u32) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let one = |position: u32| {
        let center = (f64::from(position) + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from as usize);
        let weights: Vec<f64> = (first..end).map(|source| cubic((source as f64 - center + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = weights.iter().map(|weight| (weight / sum * f64::from(1_u32 << PRECISION)).round() as i32);
        Taps { first, weights: fixed.collect() }
    };
    (0..to).map(one).collect()
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
