//! What computes the tiles of a product on this processor.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "loops vectorize only in the function that knows the processor")]

use std::{
    mem::MaybeUninit,
    sync::OnceLock,
    time::{Duration, Instant},
};

use pulp::Arch;

use super::{
    pack::{Format, Operand},
    part::{Output, Right},
    tasks::with,
    values::{Lanes, values},
};
use crate::{precision::Precision, simd::fetch};

/// The most rows of a tile in registers.
pub(super) const ROWS: usize = 14;
/// The most columns.
pub(super) const COLS: usize = 32;

/// What computes a tile.
#[derive(Clone, Copy, Debug)]
pub(in crate::tensor::host) enum Kernel {
    /// The processor's own product of bf16 (AVX512-BF16).
    #[cfg(target_arch = "x86_64")]
    Native,
    /// Products of f32, whose operands were rounded to this precision.
    Values(Arch, Precision),
    /// As the last with bf16, but the even product before the odd one.
    #[cfg(test)]
    EvenFirst,
}

/// Whether this processor multiplies bf16 by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    /// It does.
    Yes,
    /// It has no such instruction.
    No,
    /// It has, but its products of f32 are at least as fast; it is not used. The sums are the same.
    Slow,
    /// It says so, but gives other sums than plain arithmetic; it is not used.
    Wrong,
}

/// Whether this processor multiplies bf16 by itself. The first call tries it.
pub fn native() -> Native {
    static NATIVE: OnceLock<Native> = OnceLock::new();
    *NATIVE.get_or_init(|| {
        let values = Kernel::Values(Arch::new(), Precision::Bf16);
        match Kernel::of_processor() {
            None => Native::No,
            Some(kernel) if !agree(kernel, values) => Native::Wrong,
            Some(kernel) if time(kernel) < time(values) => Native::Yes,
            Some(_) => Native::Slow,
        }
    })
}

impl Kernel {
    /// The fastest for operands in `precision`.
    pub(in crate::tensor::host) fn new(precision: Precision) -> Self {
        let values = Self::Values(Arch::new(), precision);
        match precision {
            Precision::Bf16 if native() == Native::Yes => Self::of_processor().unwrap_or(values),
            _ => values,
        }
    }

    /// The processor's own.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of_processor() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        has.then_some(Self::Native)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn of_processor() -> Option<Self> {
        None
    }

    /// How it reads panels.
    pub(super) fn format(self) -> Format {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Native => Format::Words,
            Self::Values(_, precision) => Format::Values(precision),
            #[cfg(test)]
            Self::EvenFirst => Format::Words,
        }
    }

    /// Rows and columns of a whole tile.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::Values(arch, _) => Lanes::of(arch).tile(),
            #[cfg(any(test, target_arch = "x86_64"))]
            _ => (ROWS, COLS),
        }
    }

    /// Computes a tile of `rows` and `to.cols` columns, at most those of [`Kernel::size`]. `left` is a panel of as many lanes,
    /// `right` one of a whole tile's columns, of equally many pairs.
    ///
    /// # Safety
    /// `to` must be as its documentation says.
    pub(super) unsafe fn tile(self, rows: usize, left: &[u32], right: &[u32], to: Target<'_>) {
        let (most, cols) = self.size();
        assert!(rows <= most && to.cols <= cols && left.len() * cols == right.len() * rows, "a tile's panels");
        if rows == 0 {
            return;
        }
        match self {
            // SAFETY: the processor has what the function needs, or there would be no such kernel; the panels have the sizes
            // asserted above; `to` is the caller's.
            #[cfg(target_arch = "x86_64")]
            Self::Native => unsafe { super::native::TILES[rows - 1](left, right, to) },
            // SAFETY: as above.
            Self::Values(arch, _) => unsafe { values(arch, rows, left, right, to) },
            // SAFETY: as above.
            #[cfg(test)]
            Self::EvenFirst => unsafe { tests::even_first(rows, left, right, to) },
        }
    }
}

/// Where a tile goes: `c = alpha * sum + (c or bias or 0)`.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// Its first element. Rows are `stride` apart, and each has `cols` elements that nothing else refers to, and which are values only if
    /// something is added to them.
    pub(super) c: *mut f32,
    pub(super) stride: usize,
    pub(super) cols: usize,
    pub(super) alpha: f32,
    /// Whether to add to what is there.
    pub(super) add: bool,
    /// Of these columns, in place of what is there.
    pub(super) bias: Option<&'a [f32]>,
}

impl Target<'_> {
    /// Fetches what [`Target::write`] will read, as its rows are far from each other.
    #[inline(always)]
    pub(super) fn fetch(&self, rows: usize) {
        for row in 0..rows {
            let c = self.c.wrapping_add(row * self.stride);
            fetch::<true, _>(c);
            fetch::<true, _>(c.wrapping_add(self.cols - 1));
        }
    }

    /// Writes the sums of a tile, whose rows have `width` values.
    ///
    /// # Safety
    /// The rows must be as the documentation of this type says.
    #[inline(always)]
    pub(super) unsafe fn write(&self, sums: &[f32], width: usize) {
        for (row, sums) in sums.chunks_exact(width).enumerate() {
            let row = self.c.wrapping_add(row * self.stride);
            // SAFETY: a row of the tile, which belongs to it alone.
            let c = unsafe { std::slice::from_raw_parts_mut(row.cast::<MaybeUninit<f32>>(), self.cols) };
            if self.add {
                // SAFETY: what is added to has been written.
                let add = |(c, sum): (&mut MaybeUninit<f32>, &f32)| unsafe { *c.assume_init_mut() += self.alpha * sum };
                c.iter_mut().zip(sums).for_each(add);
            } else if let Some(bias) = self.bias {
                let sums = sums.iter().zip(bias).map(|(sum, bias)| self.alpha * sum + bias);
                c.iter_mut().zip(sums).for_each(|(c, sum)| _ = c.write(sum));
            } else {
                c.iter_mut().zip(sums).for_each(|(c, sum)| _ = c.write(self.alpha * sum));
            }
        }
    }
}

/// Pairs of the panels that are tried.
const TRIED: usize = 64;

/// The shortest time in which a kernel computes a whole tile, so that what else runs on this processor has no say.
fn time(kernel: Kernel) -> Duration {
    let (rows, cols) = kernel.size();
    let length = TRIED * kernel.format().words();
    let (left, right, mut c) = (vec![0; rows * length], vec![0; cols * length], vec![0.0; rows * cols]);
    let to = Target { c: c.as_mut_ptr(), stride: cols, cols, alpha: 1.0, add: false, bias: None };
    let tries = (0..32).map(|_| {
        let began = Instant::now();
        // SAFETY: `c` has all rows, and is this call's alone.
        unsafe { kernel.tile(rows, &left, &right, to) };
        // Of equally many elements.
        began.elapsed() * (ROWS * COLS) as u32 / (rows * cols) as u32
    });
    tries.min().unwrap_or_default()
}

/// Whether two kernels give the same bits on some tiles of bf16.
fn agree(one: Kernel, other: Kernel) -> bool {
    let value = |index: usize, salt: usize| {
        // Values of all signs between 1/16 and 8.
        let mix = (index + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 5;
        f32::from_bits(((mix & 0x807f | (123 + (mix >> 16) % 7) << 7) as u32) << 16)
    };
    [(ROWS, COLS, 37), (1, 1, 1), (5, 17, TRIED)].into_iter().all(|(rows, cols, pairs)| {
        let [left, right] =
            [rows, cols].map(|lanes| (0..pairs * 2 * lanes).map(|index| value(index, lanes)).collect::<Vec<f32>>());
        let bias: Vec<f32> = (0..cols).map(|col| col as f32 / 3.0).collect();
        [(1.0, false, None), (0.7, true, None), (1.0, false, Some(bias.as_slice()))].into_iter().all(
            |(alpha, add, bias)| {
                let output = Output { alpha, add, bias };
                let of = |kernel: Kernel| {
                    let mut c: Vec<f32> = (0..rows * cols).map(|index| index as f32 / 7.0).collect();
                    let [left, right] =
                        [Operand::along(&left, rows, 2 * pairs), Operand::along(&right, cols, 2 * pairs)];
                    with(kernel, left, Right::Plain(right), &mut c, output);
                    c.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                of(one) == of(other)
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tile of words, the even product before the odd one.
    ///
    /// # Safety
    /// As [`Kernel::tile`].
    pub(super) unsafe fn even_first(rows: usize, left: &[u32], right: &[u32], to: Target<'_>) {
        let halves = |word: u32| [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
        for row in 0..rows {
            for col in 0..to.cols {
                let pairs = left.iter().skip(row).step_by(rows).zip(right.iter().skip(col).step_by(COLS));
                let sum = pairs.fold(0.0_f32, |sum, (left, right)| {
                    halves(*left).into_iter().zip(halves(*right)).fold(sum, |sum, (a, b)| a.mul_add(b, sum))
                });
                // SAFETY: an element of the tile.
                let c = unsafe { &mut *to.c.add(row * to.stride + col) };
                let old = if to.add { *c } else { to.bias.map_or(0.0, |bias| bias[col]) };
                *c = to.alpha * sum + old;
            }
        }
    }

    #[test]
    fn the_processor_s_own_is_used_if_it_agrees_to_the_bit() {
        let values = Kernel::Values(Arch::new(), Precision::Bf16);
        assert!(agree(values, values));
        assert!(!agree(Kernel::EvenFirst, values), "another order of sums is noticed");
        assert_ne!(native(), Native::Wrong, "the processor's product differs from plain arithmetic");
        assert_eq!(Kernel::of_processor().is_some(), native() != Native::No);
        assert!(!matches!(Kernel::new(Precision::F32).format(), Format::Words));
    }
}
