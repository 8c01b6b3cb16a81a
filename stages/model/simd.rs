//! Loops compiled for the widest SIMD that the processor has. Independent of what they compute.

/// Runs `f` compiled for the widest SIMD that this processor has. Loops inside it must be inlined.
///
/// The result does not depend on the processor: the compiler neither reorders nor contracts float operations.
#[inline]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
