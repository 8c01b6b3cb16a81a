//! Several transfers at once. Independent of what is transferred.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// The most at once.
const CONNECTIONS: usize = 8;

/// Calls `work` for all items, several at once. After a failure no other begins; returns the first one.
pub(super) fn for_each<T: Sync, E: Send>(items: &[T], work: impl Fn(&T) -> Result<(), E> + Sync) -> Result<(), E> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None::<E>));
    let failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    let run = || {
        while failure().is_none() {
            let Some(item) = items.get(next.fetch_add(1, Relaxed)) else { return };
            if let Err(error) = work(item) {
                failure().get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS.min(items.len()) {
            scope.spawn(run);
        }
    });
    let error = failure().take();
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_or_the_first_failure_is_told() {
        let (items, sum) = ((1..=100).collect::<Vec<usize>>(), AtomicUsize::new(0));
        let add = |item: &usize| {
            sum.fetch_add(*item, Relaxed);
            if *item == 1000 { Err("large") } else { Ok(()) }
        };
        assert_eq!(for_each(&items, add), Ok(()));
        assert_eq!(sum.load(Relaxed), 5050);
        assert_eq!(for_each(&[1000, 1], add), Err("large"));
        assert_eq!(for_each(&[], add), Ok(()));
    }
}
