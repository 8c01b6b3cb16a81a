//! Identities of matrices' gradients, on the host and on devices.

use std::sync::atomic::{AtomicU64, Ordering};

/// An identity that no other matrix has.
pub(super) fn new() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
