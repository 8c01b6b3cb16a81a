//! Work that several workers share: each has a device and a thread of its own, and all of them end before the work does.
//! Independent of what they do.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use imp_model::tensor::Place;

use super::fault;
use crate::StageError;

/// As much as the first thread of a process usually has.
const STACK: usize = 8 << 20;

/// How the work of one of them ended; a panic is the fault of a device, or a bug.
type Ended<T> = Result<Result<T, StageError>, Box<dyn Any + Send>>;

/// Does `work` with all `workers` at once, with the first on this thread. Returns what they found, in their order. `stop` is called
/// when one of them fails, so that no other waits for it.
///
/// # Errors
/// That of a worker; the fault of a device names its GPU.
///
/// # Panics
/// With the panic of a worker, which is a bug.
pub(crate) fn each<W: Send, T: Send>(
    workers: &mut [W],
    stop: impl Fn() + Sync,
    work: impl Fn(usize, &mut W) -> Result<T, StageError> + Sync,
) -> Result<Vec<T>, StageError> {
    if let [only] = workers {
        return Ok(vec![work(0, only)?]);
    }
    let attempt = |index: usize, worker: &mut W| -> Ended<T> {
        let ended = catch_unwind(AssertUnwindSafe(|| work(index, worker)));
        if !matches!(ended, Ok(Ok(_))) {
            stop();
        }
        ended
    };
    let attempt = &attempt;
    let ended: Vec<Ended<T>> = thread::scope(|scope| {
        let mut all = workers.iter_mut().enumerate();
        let first = all.next();
        let start = |(index, worker): (usize, _)| {
            let thread = thread::Builder::new().name(format!("worker {}", index + 1)).stack_size(STACK);
            thread.spawn_scoped(scope, move || attempt(index, worker)).map_err(|error| {
                stop();
                no_thread(&error)
            })
        };
        let started: Vec<_> = all.map(start).collect();
        let first = first.map(|(index, worker)| attempt(index, worker));
        let others = started.into_iter().map(|started| match started {
            Ok(thread) => thread.join().unwrap_or_else(Err),
            Err(error) => Ok(Err(error)),
        });
        first.into_iter().chain(others).collect()
    });
    joined(ended)
}

/// Moves `model` to the first of `places`, and replicas of it to the others, which are returned.
///
/// # Errors
/// If a device has too little memory.
pub(crate) fn replicas<M: Clone + Send>(
    model: &mut M,
    places: &[Place],
    move_to: impl Fn(&mut M, &Place) + Sync,
) -> Result<Vec<M>, StageError> {
    let mut others = vec![model.clone(); places.len().saturating_sub(1)];
    let mut all: Vec<&mut M> = std::iter::once(model).chain(&mut others).collect();
    each(
        &mut all,
        || (),
        |index, model| {
            move_to(model, &places[index]);
            Ok(())
        },
    )?;
    Ok(others)
}

/// Does `work` with the device of another worker than the one whose thread this is.
///
/// # Errors
/// The fault of the device, which names it.
///
/// # Panics
/// With any other panic of `work`.
pub(crate) fn with_device_of<T>((index, count): (usize, usize), work: impl FnOnce() -> T) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match fault::fault(&*panic) {
        Some(error) => named(error, &name(index, count)),
        None => resume_unwind(panic),
    })
}

/// What workers share. One that panicked ends the stage, so what it left is not used.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error of a thread that can't be started.
pub(crate) fn no_thread(error: &io::Error) -> StageError {
    StageError::failed(format!("a thread can't be started: {error}"), "give the stage fewer `gpus`")
}

/// What all of them found, or the failure that made the others stop.
fn joined<T>(ended: Vec<Ended<T>>) -> Result<Vec<T>, StageError> {
    let count = ended.len();
    let (mut found, mut failure) = (Vec::with_capacity(count), None);
    for (index, ended) in ended.into_iter().enumerate() {
        let error = match ended {
            Ok(Ok(result)) => {
                found.push(result);
                continue;
            }
            Ok(Err(error)) => error,
            Err(panic) => match fault::fault(&*panic) {
                Some(error) => named(error, &name(index, count)),
                None => resume_unwind(panic),
            },
        };
        // A worker that was told to stop says only that.
        if !matches!(failure, Some(ref earlier) if !matches!(earlier, StageError::Cancelled)) {
            failure = Some(error);
        }
    }
    failure.map_or(Ok(found), Err)
}

/// The same error, of the device of a worker.
pub(super) fn named(error: StageError, name: &str) -> StageError {
    match error {
        StageError::Failed { message, help } => StageError::Failed { message: format!("{name}: {message}"), help },
        other => other,
    }
}

/// What messages call a worker: by the number that the machine has for its GPU, since the stage numbers its own from 0.
pub(crate) fn name(index: usize, count: usize) -> String {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    name_among(&visible, index, count)
}

fn name_among(visible: &str, index: usize, count: usize) -> String {
    let gpu = visible.split(',').nth(index).map(str::trim).filter(|gpu| !gpu.is_empty());
    let gpu = gpu.map_or_else(|| index.to_string(), Into::into);
    format!("GPU {gpu} (worker {} of {count})", index + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        panic::panic_any,
        sync::atomic::{AtomicBool, Ordering},
    };

    use imp_model::tensor::DeviceError;

    use super::*;

    /// Three workers of which the `failing` ones end with `how`, and the others wait for that.
    fn fails(failing: &[usize], how: impl Fn() -> StageError + Sync) -> StageError {
        let stopped = AtomicBool::new(false);
        let stop = || stopped.store(true, Ordering::SeqCst);
        let work = |index: usize, (): &mut ()| -> Result<(), StageError> {
            if failing.contains(&index) {
                return Err(how());
            }
            while !stopped.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            Err(StageError::Cancelled)
        };
        each(&mut [(); 3], stop, work).unwrap_err()
    }

    #[test]
    fn results_are_in_the_order_of_the_workers() {
        let mut workers = [1, 2, 3];
        let double = |index: usize, worker: &mut usize| {
            *worker *= 2;
            Ok((index, *worker))
        };
        assert_eq!(each(&mut workers, || (), double).unwrap(), [(0, 2), (1, 4), (2, 6)]);
        assert_eq!(workers, [2, 4, 6]);
    }

    #[test]
    fn the_failure_of_one_is_that_of_all() {
        let error = fails(&[2], || StageError::failed("no such record", "look"));
        assert_eq!(error.to_string(), "no such record", "and not that the others were stopped");
        let full = DeviceError::OutOfMemory { needed: 12_000_000, free: 0, total: 80_000_000_000 };
        let error = fails(&[1], || panic_any(full.clone()));
        let words = "(worker 2 of 3): the GPU's memory is full: 12.0 MB were needed, 0 B of 80.0 GB are free";
        assert!(error.to_string().ends_with(words), "{error}");
        assert!(error.help().unwrap().contains("micro_batch_size"));
        assert!(matches!(fails(&[0, 1, 2], || StageError::Cancelled), StageError::Cancelled));
    }

    #[test]
    fn a_fault_of_another_s_device_names_that_one() {
        assert_eq!(with_device_of((2, 3), || 7).unwrap(), 7);
        let full = DeviceError::OutOfMemory { needed: 12_000_000, free: 0, total: 80_000_000_000 };
        let error = with_device_of::<()>((2, 3), || panic_any(full)).unwrap_err();
        assert!(error.to_string().contains("(worker 3 of 3): the GPU's memory is full"), "{error}");
    }

    #[test]
    fn a_gpu_has_the_number_that_the_machine_knows_it_by() {
        assert_eq!(name_among("4, 6", 1, 2), "GPU 6 (worker 2 of 2)");
        assert_eq!([name_among("", 1, 2), name_among("4", 1, 2)], ["GPU 1 (worker 2 of 2)", "GPU 1 (worker 2 of 2)"]);
    }

    #[test]
    fn a_bug_in_one_of_them_is_a_bug_of_the_stage() {
        let bug = catch_unwind(|| fails(&[1], || panic!("index out of bounds"))).unwrap_err();
        assert_eq!(bug.downcast_ref::<&str>(), Some(&"index out of bounds"));
    }
}
