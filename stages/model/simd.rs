//! Runs loops compiled for the widest SIMD of the processor. Independent of what they compute.

/// Runs `f` compiled for the widest SIMD instructions of this processor. Functions that `f` calls must be inlined to
/// benefit.
///
/// The result does not depend on the processor: the compiler neither reorders nor contracts float operations.
#[inline]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
