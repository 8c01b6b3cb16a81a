//! Runs loops compiled for the widest SIMD of the processor. Independent of what they compute.

#![allow(unsafe_code)]

use pulp::{Arch, Scalar128b, Simd, WithSimd};

/// Runs a closure compiled for the widest SIMD instructions of this processor. Functions that it calls must be inlined to
/// benefit, which `array::map` is not.
///
/// The result does not depend on the processor: the compiler neither reorders nor contracts float operations. A macro, because a closure
/// is compiled for these instructions only if it is inlined, and only here can it be told to be.
///
/// What the closure captures is moved into it. If it were borrowed, a number could lie in the memory that the loop writes, as far as
/// the compiler knows, and then loops don't vectorize. Nor do they with a check that can fail in each step (an index, a conversion
/// of floats to integers by `as`).
macro_rules! simd {
    (|| $body:expr) => {
        $crate::simd::run(
            #[inline(always)]
            move || $body,
        )
    };
}

pub(crate) use simd;

/// For [`simd!`].
#[inline(always)]
#[allow(clippy::inline_always, reason = "as the closure")]
pub(crate) fn run<R>(closure: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Inlined(closure))
}

struct Inlined<F>(F);

impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Inlined<F> {
    type Output = R;

    /// Not through `FnOnce`: its `call_once` is a function of its own, which need not be inlined.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "as the closure")]
    fn call(mut self) -> R {
        self.0()
    }
}

/// For a loop around a short loop over values that lie side by side: the compiler vectorizes the inner one, instead of gathering values
/// of several rounds of the outer one, far from each other.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as the closure")]
pub(crate) fn one_round_at_a_time() {
    // SAFETY: no instruction, which changes nothing. Loops around it are not vectorized.
    unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) }
}

/// For sums in lanes that a loop before this has added up, and that are added to each other after it: the compiler keeps the lanes side by
/// side in the loop, instead of in the order that suits what comes after it.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as the closure")]
pub(crate) fn settle<T>(lanes: &mut T) {
    // SAFETY: no instruction, only a comment. The compiler takes it that the lanes are read and written in memory, which they may be, as they
    // are borrowed mutably.
    unsafe { std::arch::asm!("/* {0} */", in(reg) std::ptr::from_mut(lanes), options(nostack, preserves_flags)) }
}

/// Fetches the line of memory at an address, which may be any, for a later read: into the core's nearest cache, or its second.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as the closure")]
pub(crate) fn fetch<const NEAREST: bool, T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which reads nothing.
        unsafe {
            if NEAREST {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T1>(address.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Fetches what stands a page after these values, for loops over weights that are read once: processors fetch what follows by themselves,
/// but not beyond a page.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as the closure")]
pub(crate) fn fetch_ahead<T>(values: &[T]) {
    const PAGE: usize = 4096;
    const LINE: usize = 64;
    let start = values.as_ptr().cast::<u8>();
    for at in (0..size_of_val(values)).step_by(LINE) {
        fetch::<true, _>(start.wrapping_add(PAGE + at));
    }
}

/// Runs an operation that is generic over the SIMD of the processor.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as the closure")]
pub(crate) fn on<Op: WithSimd>(arch: Arch, op: Op) -> Op::Output {
    match arch {
        // Vectors that every processor of 64 bits has.
        Arch::Scalar => Simd::vectorize(Scalar128b, op),
        arch => arch.dispatch(op),
    }
}
