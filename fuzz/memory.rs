//! An allocator that ends the process when a target takes more memory than an input of a few kilobytes can be worth. libFuzzer's own
//! limit on single allocations needs a sanitizer; what libraries in C take counts for its limit on the whole process only.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

#[global_allocator]
static COUNTED: Counted = Counted;

/// Bytes in use, and what the running target may have in use.
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

const MB: usize = 1 << 20;
/// The most that a target may hold, and the most that it may take at once.
const HELD_LIMIT: usize = 512 * MB;
const TAKEN_LIMIT: usize = 256 * MB;

/// Runs a target within these limits.
pub(crate) fn limited(target: impl FnOnce()) {
    MOST.store(HELD.load(Relaxed) + HELD_LIMIT, Relaxed);
    target();
    MOST.store(usize::MAX, Relaxed);
}

struct Counted;

impl Counted {
    fn take(bytes: usize) {
        let (held, most) = (HELD.fetch_add(bytes, Relaxed) + bytes, MOST.load(Relaxed));
        if held > most || most != usize::MAX && bytes > TAKEN_LIMIT {
            // The message takes memory, too.
            MOST.store(usize::MAX, Relaxed);
            eprintln!("an allocation of {} MB, {} MB in use: too much for a small input", bytes / MB, held / MB);
            std::process::abort();
        }
    }
}

// SAFETY: all memory is the system's; sizes are counted beside it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::take(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}
