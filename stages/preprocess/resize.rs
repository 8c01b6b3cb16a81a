//! Bicubic resizing with the very bytes that Pillow gives: `Image.resize(size, BICUBIC)`, whose kernel is the cubic
//! convolution of Keys (1981) with a = -0.5. Works on RGB rows; does not know formats or models.

use image::RgbImage;

/// Fixed-point bits of a weight: 32, less 8 for the pixel and 2 for the kernel's overshoot.
const PRECISION: u32 = 32 - 8 - 2;
/// Reach of the kernel on either side, in source pixels at scale 1.
const SUPPORT: f64 = 2.0;

/// Resizes to `width` x `height`: first along rows, then along columns, rounded to u8 in between. Shrinking widens
/// the kernel (antialiasing).
pub(super) fn resize(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let wide = if image.width() == width { image.clone() } else { along_rows(image, width) };
    if wide.height() == height { wide } else { along_columns(&wide, height) }
}

/// What makes one output pixel: `weights` over source pixels from `first`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn along_rows(image: &RgbImage, width: u32) -> RgbImage {
    let taps = taps(image.width(), width);
    let mut out = RgbImage::new(width, image.height());
    let stride = 3 * image.width() as usize;
    for (row, to) in image.as_raw().chunks_exact(stride).zip(out.chunks_exact_mut(3 * width as usize)) {
        for (pixel, tap) in to.chunks_exact_mut(3).zip(&taps) {
            let mut sums = [HALF; 3];
            for (from, weight) in row[3 * tap.first..].chunks_exact(3).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(from) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = clip(sum);
            }
        }
    }
    out
}

fn along_columns(image: &RgbImage, height: u32) -> RgbImage {
    let stride = 3 * image.width() as usize;
    let mut out = RgbImage::new(image.width(), height);
    let mut sums = vec![0; stride];
    for (to, tap) in out.chunks_exact_mut(stride).zip(taps(image.height(), height)) {
        sums.fill(HALF);
        for (row, weight) in image.as_raw()[stride * tap.first..].chunks_exact(stride).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (value, sum) in to.iter_mut().zip(&sums) {
            *value = clip(*sum);
        }
    }
    out
}

const HALF: i32 = 1 << (PRECISION - 1);

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
