//! The threads that compute, rayon's. Independent of what they compute.

use std::thread;

use rayon::ThreadPoolBuilder;

/// Makes this thread, which computes, one of the pool's. As a thread outside it would wait for another in each operation; and the pool's
/// threads, taking turns, would each keep memory of their own. A pool of one stays as it is: it must go on while this thread waits.
pub(crate) fn join() {
    if let Some(pool) = with_this_thread() {
        told(pool.build_global());
    }
}

/// Gives this thread, which computes while others wait, a pool of its own, of which it is one.
pub(crate) fn own() {
    if let Some(pool) = with_this_thread() {
        // It lasts as long as the process.
        told(pool.build().map(std::mem::forget));
    }
}

fn with_this_thread() -> Option<ThreadPoolBuilder> {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
    let threads = asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    (threads > 1).then(|| ThreadPoolBuilder::new().num_threads(threads).use_current_thread())
}

fn told(built: Result<(), rayon::ThreadPoolBuildError>) {
    if let Err(error) = built {
        tracing::warn!("computing may be slower: this thread can't join the pool: {error}");
    }
}
