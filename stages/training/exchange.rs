//! How the workers of a stage pass gradients and weights to each other. Independent of what they compute.

use std::{
    ffi::OsStr,
    sync::{Condvar, Mutex, PoisonError},
};

use imp_model::tensor::{Mat, Place, Point, Transfer, Unconnected, connect};

use crate::{
    StageError,
    place::{lock, name, with_device_of},
};

/// The variable that keeps GPUs from using each other's memory, if it is `0`.
pub(super) const DIRECT: &str = "IMP_FLOW_GPU_DIRECT";

/// A way from worker to worker. In each step all parts of the batch are added up, each worker takes the sums of its share of the
/// parameters, and gives the new weights to the others. Several threads call its functions at once, but for [`Exchange::end`].
///
/// Sums lie where their worker is, if its device can add what lies on the others'; else all of them lie in host memory, where they
/// take four bytes for each trained weight. A part's gradients stay with their worker until they are added.
pub(super) struct Exchange {
    /// Workers.
    count: usize,
    /// By parameter: the worker at which its sum lies, and its place; with `None` it lies in host memory.
    sums: Vec<Option<(usize, Place)>>,
    /// By parameter: the sum so far, then its new weight.
    slots: Vec<Mutex<Option<Mat>>>,
    turns: Mutex<Turns>,
    /// A turn has passed, or a worker has failed.
    changed: Condvar,
}

/// Whether GPUs may use each other's memory, by the value of [`DIRECT`].
///
/// # Errors
/// If it means nothing: who has set it wants something of it.
fn is_allowed(value: Option<&OsStr>) -> Result<bool, StageError> {
    match value.map(OsStr::to_string_lossy).as_deref() {
        None | Some("" | "1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => Err(StageError::failed(
            format!("{DIRECT} is `{}`, which means nothing", other.escape_debug()),
            "set it to 0, so that GPUs don't use each other's memory, or to 1",
        )),
    }
}

/// Gradients of a part that are final.
pub(super) struct Finished {
    /// With the numbers of their parameters.
    pub(super) gradients: Vec<(usize, Mat)>,
    /// After which they are computed.
    pub(super) point: Point,
}

struct Turns {
    /// By parameter: the part that is to be added next.
    next: Vec<usize>,
    stopped: bool,
}

impl Exchange {
    /// An exchange between workers at `places`, with the parameters that each updates. Also returns why it goes through the host,
    /// if it could be direct.
    ///
    /// # Errors
    /// If a device has failed when it was tried.
    pub(super) fn new(places: &[Place], shares: &[Vec<usize>]) -> Result<(Self, Option<String>), StageError> {
        if places.iter().any(|place| place.device.is_none()) {
            return Ok((Self::through_host(shares), None));
        }
        if !is_allowed(std::env::var_os(DIRECT).as_deref())? {
            return Ok((Self::through_host(shares), Some(format!("{DIRECT} is 0"))));
        }
        if let Err(Unconnected { reader, read, reason, is_fatal }) = connect(places) {
            let [reader, read] = [reader, read].map(|worker| name(worker, places.len()));
            if is_fatal {
                return Err(StageError::failed(
                    format!("{reader} or {read} failed while the first read the memory of the second: {reason}"),
                    format!(
                        "run the same command again with {DIRECT}=0 in the environment: then they don't use each other's"
                    ),
                ));
            }
            let why = format!("{reader} does not read the memory of {read}: {reason}");
            return Ok((Self::through_host(shares), Some(why)));
        }
        let mut sums = vec![None; shares.iter().map(Vec::len).sum()];
        for (worker, (place, share)) in places.iter().zip(shares).enumerate() {
            for parameter in share {
                sums[*parameter] = Some((worker, place.clone()));
            }
        }
        Ok((Self::at(places.len(), sums), None))
    }

    fn through_host(shares: &[Vec<usize>]) -> Self {
        Self::at(shares.len(), vec![None; shares.iter().map(Vec::len).sum()])
    }

    fn at(count: usize, sums: Vec<Option<(usize, Place)>>) -> Self {
        Self {
            count,
            slots: sums.iter().map(|_| Mutex::default()).collect(),
            turns: Mutex::new(Turns { next: vec![0; sums.len()], stopped: false }),
            changed: Condvar::new(),
            sums,
        }
    }

    /// Adds gradients of part number `part` of the batch to those of the parts before it, for which it waits: so the sums are
    /// those of one worker, to the bit.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] if another worker has failed; the fault of the device with the sum.
    pub(super) fn add(&self, part: usize, finished: Finished) -> Result<(), StageError> {
        let mut transfer = Transfer::after(&finished.point);
        for (parameter, gradient) in finished.gradients {
            self.wait(parameter, part)?;
            let (worker, place) = self.sums[parameter].clone().unwrap_or((part % self.count, Place::default()));
            let add = || transfer.add(&mut lock(&self.slots[parameter]), gradient, &place);
            with_device_of((worker, self.count), add)?;
            lock(&self.turns).next[parameter] += 1;
            self.changed.notify_all();
        }
        transfer.finish().or_else(|fault| {
            let is_there = |(_, place): &&(usize, Place)| place.device == fault.place.device;
            match self.sums.iter().flatten().find(is_there) {
                Some((worker, _)) => with_device_of((*worker, self.count), || fault.raise()),
                None => fault.raise(),
            }
        })
    }

    fn wait(&self, parameter: usize, part: usize) -> Result<(), StageError> {
        let waits = |turns: &mut Turns| !turns.stopped && turns.next[parameter] != part;
        let turns = self.changed.wait_while(lock(&self.turns), waits).unwrap_or_else(PoisonError::into_inner);
        if turns.stopped { Err(StageError::Cancelled) } else { Ok(()) }
    }

    /// Takes the sums over all parts for the parameters `share` to `place`.
    pub(super) fn take(&self, share: &[usize], place: &Place) -> Vec<Mat> {
        let sums = share.iter().filter_map(|parameter| lock(&self.slots[*parameter]).take());
        sums.map(|sum| sum.to(place)).collect()
    }

    /// Gives the new weight of a parameter. It must not change before all have received it.
    pub(super) fn give(&self, parameter: usize, weight: &Mat) {
        *lock(&self.slots[parameter]) = Some(match self.sums[parameter] {
            Some(_) => weight.clone(),
            None => weight.to(&Place::default()),
        });
    }

    /// Replaces a weight by the one that was given.
    pub(super) fn receive(&self, parameter: usize, weight: &mut Mat, transfer: &mut Transfer) {
        // Copied to several devices at the same time.
        let given = lock(&self.slots[parameter]).clone();
        if let Some(given) = given {
            transfer.replace(weight, &given);
        }
    }

    /// Ends a step, after which all have received all weights.
    pub(super) fn end(&self) {
        self.slots.iter().for_each(|slot| *lock(slot) = None);
        lock(&self.turns).next.fill(0);
    }

    /// To be called when a worker fails: the others don't wait any more.
    pub(super) fn stop(&self) {
        lock(&self.turns).stopped = true;
        self.changed.notify_all();
    }

    /// Whether all workers are still at work.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] if one has failed.
    pub(super) fn check(&self) -> Result<(), StageError> {
        if lock(&self.turns).stopped { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// The parameters of each of `workers` workers, given the number of values of each parameter: about as many values for each, and some
/// of each layer, so that gradients go to all of them during the whole backward pass.
pub(super) fn shares(counts: &[usize], workers: usize) -> Vec<Vec<usize>> {
    let mut shares = vec![(0, Vec::new()); workers];
    for (parameter, count) in counts.iter().enumerate() {
        if let Some((values, share)) = shares.iter_mut().min_by_key(|(values, _)| *values) {
            *values += count;
            share.push(parameter);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;

    use super::*;

    fn mat(value: f32) -> Mat {
        Mat::from_host(1, 2, vec![value, -value])
    }

    /// An exchange between so many workers on the host.
    fn between(workers: usize, parameters: usize) -> Exchange {
        let places = vec![Place::default(); workers];
        Exchange::new(&places, &shares(&vec![1; parameters], workers)).unwrap().0
    }

    fn finished(gradients: Vec<(usize, Mat)>) -> Finished {
        Finished { gradients, point: Place::default().point() }
    }

    /// Sums of these numbers depend on their order.
    const PARTS: [f32; 5] = [1.0, 1e8, -1e8, 3e-8, 1.0];

    #[test]
    fn gradients_are_added_in_the_order_of_parts() {
        let exchange = between(3, 2);
        for _ in 0..2 {
            thread::scope(|scope| {
                // The later part comes first.
                for parts in [[3, 4].as_slice(), &[1], &[0, 2]] {
                    let exchange = &exchange;
                    scope.spawn(move || {
                        for part in parts {
                            exchange.add(*part, finished(vec![(1, mat(1.0)), (0, mat(PARTS[*part]))])).unwrap();
                        }
                    });
                }
            });
            let sum = PARTS[1..].iter().fold(PARTS[0], |sum, part| sum + part);
            let [first, second] = exchange.take(&[0, 1], &Place::default()).try_into().unwrap();
            assert_eq!((&*first.to_host(), &*second.to_host()), (&[sum, -sum][..], &[5.0, -5.0][..]));
            let mut weight = mat(0.0);
            exchange.give(1, &mat(7.0));
            exchange.receive(1, &mut weight, &mut Transfer::after(&Place::default().point()));
            assert_eq!(*weight.to_host(), [7.0, -7.0]);
            exchange.end();
        }
    }

    #[test]
    fn who_waits_for_a_worker_that_failed_is_told() {
        let exchange = between(2, 1);
        exchange.check().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| exchange.add(1, finished(vec![(0, mat(1.0))])));
            exchange.stop();
            assert!(matches!(waiting.join().unwrap(), Err(StageError::Cancelled)));
        });
        assert!(exchange.check().is_err());
    }

    #[test]
    fn a_variable_that_means_nothing_is_refused() {
        let of = |value: &str| is_allowed(Some(OsStr::new(value)));
        assert!(is_allowed(None).unwrap() && of("").unwrap() && of("1").unwrap() && !of("0").unwrap());
        let error = of("off").unwrap_err();
        assert_eq!(error.to_string(), "IMP_FLOW_GPU_DIRECT is `off`, which means nothing");
        assert!(error.help().unwrap().contains("set it to 0"));
    }

    #[test]
    fn each_worker_has_about_as_much_to_update() {
        assert_eq!(shares(&[5, 5, 5, 5], 2), [[0, 2], [1, 3]]);
        assert_eq!(shares(&[10, 1, 1, 10], 2), [vec![0], vec![1, 2, 3]]);
        assert_eq!(shares(&[7], 3), [vec![0], vec![], vec![]]);
        // Layers of one kind.
        let counts = [2, 5, 3, 4].repeat(30);
        for workers in 1..6 {
            let shares = shares(&counts, workers);
            assert_eq!(shares.len(), workers);
            let mut all = shares.concat();
            all.sort_unstable();
            assert_eq!(all, (0..counts.len()).collect::<Vec<_>>());
            for share in shares {
                let values: usize = share.iter().map(|parameter| counts[*parameter]).sum();
                assert!(values.abs_diff(14 * 30 / workers) <= 5, "{values} for one of {workers}");
                let gap = share.windows(2).map(|pair| pair[1] - pair[0]).max();
                assert!(gap <= Some(3 * workers), "some of each layer: {share:?}");
            }
        }
    }
}
