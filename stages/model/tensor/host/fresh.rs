//! New buffers, written by all threads.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Values that a thread sets to zero at a time.
const PART: usize = 1 << 14;

/// `length` values, of which `fill` writes parts of `part` values, given the index of the first. A part is zero before, set by the
/// thread that fills it, in whose cache it then is; `vec![0.0; length]` is written by one thread while the others wait.
pub(in crate::tensor) fn filled(length: usize, part: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let part = part.max(1);
    let mut values: Vec<f32> = Vec::with_capacity(length);
    values.spare_capacity_mut()[..length].par_chunks_mut(part).enumerate().for_each(|(index, values)| {
        values.fill(MaybeUninit::new(0.0));
        // SAFETY: all of them were set in the line above.
        let values = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<f32>(), values.len()) };
        fill(index * part, values);
    });
    // SAFETY: the parts are all values up to `length`, and each was set.
    unsafe { values.set_len(length) };
    values
}

/// `length` zeros.
pub(in crate::tensor) fn zeros(length: usize) -> Vec<f32> {
    filled(length, PART, |_, _| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_zero_and_then_written() {
        for length in [0, 1, 7, 8, 9, 3 * PART + 1] {
            assert_eq!(zeros(length), vec![0.0; length]);
            let numbers: Vec<f32> = (0..length).map(|number| number as f32).collect();
            let add = |start: usize, part: &mut [f32]| {
                part.iter_mut().enumerate().for_each(|(index, value)| *value += (start + index) as f32);
            };
            assert_eq!([filled(length, 8, add), filled(length, 0, add)], [numbers.clone(), numbers.clone()]);
        }
    }
}
