//! How the workers of a stage pass gradients and weights to each other. Independent of what they compute.

use std::{
    ops::Range,
    sync::{Condvar, Mutex, PoisonError},
};

use imp_model::tensor::{self, Mat, Place};

use crate::{StageError, place::lock};

/// A way from worker to worker. In each step all parts of the batch are added up, each worker takes the sums of its share of the
/// parameters, and gives the new weights to the others. All of its functions are called by several threads at once.
pub(super) trait Exchange: Send + Sync {
    /// Begins a step. No worker is at work.
    fn begin(&self);

    /// Adds the gradients of all parameters in part number `part` of the batch to those of the parts before it, for which it
    /// waits: so the sums are those of one worker, to the bit.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] if another worker has failed.
    fn add(&self, part: usize, gradients: Vec<Mat>) -> Result<(), StageError>;

    /// Takes the sums over all parts for the parameters `share` to `place`.
    fn take(&self, share: Range<usize>, place: &Place) -> Vec<Mat>;

    /// Gives the new weight of a parameter.
    fn give(&self, parameter: usize, weight: &Mat);

    /// Replaces a weight by the one that was given.
    fn receive(&self, parameter: usize, weight: &mut Mat);

    /// To be called when a worker fails: the others don't wait any more.
    fn stop(&self);

    /// Whether all workers are still at work.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] if one has failed.
    fn check(&self) -> Result<(), StageError>;
}

/// The exchange through the host's memory. It takes four bytes for each trained weight there. A part's gradients stay with their
/// worker until it is their turn.
pub(super) struct HostMemory {
    /// By parameter: the sum so far, then its new weight.
    slots: Vec<Mutex<Option<Mat>>>,
    turns: Mutex<Turns>,
    /// A turn has passed, or a worker has failed.
    changed: Condvar,
}

struct Turns {
    /// By parameter: the part that is to be added next.
    next: Vec<usize>,
    stopped: bool,
}

impl HostMemory {
    /// An exchange for so many parameters.
    pub(super) fn new(parameters: usize) -> Self {
        Self {
            slots: (0..parameters).map(|_| Mutex::default()).collect(),
            turns: Mutex::new(Turns { next: vec![0; parameters], stopped: false }),
            changed: Condvar::new(),
        }
    }

    fn wait(&self, parameter: usize, part: usize) -> Result<(), StageError> {
        let waits = |turns: &mut Turns| !turns.stopped && turns.next[parameter] != part;
        let turns = self.changed.wait_while(lock(&self.turns), waits).unwrap_or_else(PoisonError::into_inner);
        if turns.stopped { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

impl Exchange for HostMemory {
    fn begin(&self) {
        lock(&self.turns).next.fill(0);
    }

    fn add(&self, part: usize, gradients: Vec<Mat>) -> Result<(), StageError> {
        for (parameter, gradient) in gradients.into_iter().enumerate() {
            // Before the turn, so that all workers copy at the same time.
            let gradient = gradient.to(&Place::default());
            self.wait(parameter, part)?;
            let mut slot = lock(&self.slots[parameter]);
            match slot.as_mut().filter(|_| part > 0) {
                Some(sum) => tensor::accumulate(sum, &gradient),
                // It replaces the weight of the last step.
                None => *slot = Some(gradient),
            }
            drop(slot);
            lock(&self.turns).next[parameter] += 1;
            self.changed.notify_all();
        }
        Ok(())
    }

    fn take(&self, share: Range<usize>, place: &Place) -> Vec<Mat> {
        self.slots[share].iter().filter_map(|slot| lock(slot).take()).map(|sum| sum.to(place)).collect()
    }

    fn give(&self, parameter: usize, weight: &Mat) {
        *lock(&self.slots[parameter]) = Some(weight.to(&Place::default()));
    }

    fn receive(&self, parameter: usize, weight: &mut Mat) {
        // Copied to several devices at the same time.
        let given = lock(&self.slots[parameter]).clone();
        if let Some(given) = given {
            weight.copy_from(&given.to_host());
        }
    }

    fn stop(&self) {
        lock(&self.turns).stopped = true;
        self.changed.notify_all();
    }

    fn check(&self) -> Result<(), StageError> {
        if lock(&self.turns).stopped { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// The parameters of each of `workers` workers, given the number of values of each parameter: neighbours, with about as many values
/// for each worker.
pub(super) fn shares(counts: &[usize], workers: usize) -> Vec<Range<usize>> {
    let total: usize = counts.iter().sum();
    let (mut shares, mut start, mut sum) = (Vec::with_capacity(workers), 0, 0);
    for worker in 1..=workers {
        let mut end = start;
        // Half of a parameter is enough to belong to it.
        while end < counts.len() && (worker == workers || (sum + counts[end] / 2) * workers < total * worker) {
            sum += counts[end];
            end += 1;
        }
        shares.push(start..end);
        start = end;
    }
    shares
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;

    use super::*;

    fn mat(value: f32) -> Mat {
        Mat::from_host(1, 2, vec![value, -value])
    }

    /// Sums of these numbers depend on their order.
    const PARTS: [f32; 5] = [1.0, 1e8, -1e8, 3e-8, 1.0];

    #[test]
    fn gradients_are_added_in_the_order_of_parts() {
        let exchange = HostMemory::new(2);
        for _ in 0..2 {
            exchange.begin();
            thread::scope(|scope| {
                // The later part comes first.
                for parts in [[3, 4].as_slice(), &[1], &[0, 2]] {
                    let exchange = &exchange;
                    scope.spawn(move || {
                        for part in parts {
                            exchange.add(*part, vec![mat(PARTS[*part]), mat(1.0)]).unwrap();
                        }
                    });
                }
            });
            let sum = PARTS[1..].iter().fold(PARTS[0], |sum, part| sum + part);
            let [first, second] = exchange.take(0..2, &Place::default()).try_into().unwrap();
            assert_eq!((&*first.to_host(), &*second.to_host()), (&[sum, -sum][..], &[5.0, -5.0][..]));
            let mut weight = mat(0.0);
            exchange.give(1, &mat(7.0));
            exchange.receive(1, &mut weight);
            assert_eq!(*weight.to_host(), [7.0, -7.0]);
        }
    }

    #[test]
    fn who_waits_for_a_worker_that_failed_is_told() {
        let exchange = HostMemory::new(1);
        exchange.check().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| exchange.add(1, vec![mat(1.0)]));
            exchange.stop();
            assert!(matches!(waiting.join().unwrap(), Err(StageError::Cancelled)));
        });
        assert!(exchange.check().is_err());
    }

    #[test]
    fn each_worker_has_about_as_much_to_update() {
        assert_eq!(shares(&[5, 5, 5, 5], 2), [0..2, 2..4]);
        assert_eq!(shares(&[1, 1, 10], 2), [0..2, 2..3]);
        assert_eq!(shares(&[7], 3).iter().map(ExactSizeIterator::len).sum::<usize>(), 1);
        for workers in 1..6 {
            let shares = shares(&[3, 1, 4, 1, 5, 9, 2, 6], workers);
            assert_eq!(shares.len(), workers);
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start), "{shares:?}");
            assert_eq!((shares[0].start, shares[workers - 1].end), (0, 8));
        }
    }
}
