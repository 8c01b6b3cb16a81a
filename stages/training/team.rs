//! The workers of a training stage. Each has a device with a replica of the model, computes the parts of a batch whose numbers are
//! its own modulo the number of workers, and updates its share of the parameters. Weights and losses are the same to the bit for
//! each number of workers: what they add up is added in the order of parts. Independent of the loop, and of how gradients travel.

use std::{collections::BTreeMap, panic::resume_unwind, sync::mpsc, thread};

use imp_model::{
    Imp, Precision,
    layers::{Parameter, Pass},
    optim::{Optimizer, Rate},
    tensor::{AdamW, Mat, Place, Transfer, global_norm, squares},
};

use super::{
    Recipe,
    batches::Images,
    checkpoint::Replica,
    exchange::{Exchange, Finished, shares},
    features::Features,
    gradients::{Batch, Parts},
    held_out::{HeldOut, Loss, total},
};
use crate::{
    Job, StageError,
    data::{mixture::Mixture, records::Record},
    place::{each, no_thread},
};

/// All workers; the model of the first is the stage's own.
pub(super) struct Team<'a> {
    workers: Vec<Worker<'a>>,
    /// `None` for one worker, whose sums stay on its device.
    exchange: Option<Exchange>,
    /// Why what GPUs exchange goes through the host, if it does.
    pub(super) detour: Option<String>,
}

struct Worker<'a> {
    replica: Replica<'a>,
    place: Place,
    features: Features,
    held_out: Option<HeldOut<'a>>,
    /// The images of the next step that it has not seen yet.
    images: Images,
    /// The sums of the gradients of its share.
    sums: Vec<Mat>,
}

/// What a step came to.
pub(super) struct Stepped {
    pub(super) loss: f32,
    /// The global norm of the gradients before clipping.
    pub(super) norm: f32,
    /// Positions of the language model.
    pub(super) tokens: usize,
    /// Labelled tokens, over which the loss is the mean.
    pub(super) labels: usize,
}

impl<'a> Team<'a> {
    /// A worker for each of `models`, which are replicas of each other.
    pub(super) fn new(
        models: impl IntoIterator<Item = &'a mut Imp>,
        recipe: &Recipe,
        (data, validation): (&Mixture, Option<&'a Mixture>),
    ) -> Result<Self, StageError> {
        let settings = AdamW { beta1: recipe.adam_beta1, beta2: recipe.adam_beta2, epsilon: recipe.adam_epsilon };
        let mut models: Vec<&mut Imp> = models.into_iter().collect();
        let (count, mut sizes) = (models.len(), Vec::new());
        if let Some(model) = models.first_mut() {
            model.trainable(&mut |_, mat| sizes.push(mat.count()));
        }
        let mut shared: Vec<(&mut Imp, Vec<usize>)> = models.into_iter().zip(shares(&sizes, count)).collect();
        let (exchange, detour) = Self::exchange(&shared)?;
        // The moments take memory of each device.
        let optimizers = each(
            &mut shared,
            || (),
            |_, (model, share)| Ok(Optimizer::of_share(model, settings, recipe.max_grad_norm, share.clone())),
        )?;
        let worker = |((model, _), optimizer): ((&'a mut Imp, _), _)| {
            Worker::new(Replica { model, optimizer }, recipe.precision, (data, validation))
        };
        let workers = shared.into_iter().zip(optimizers).map(worker).collect::<Result<_, _>>()?;
        Ok(Self { workers, exchange, detour })
    }

    /// The exchange between these models, if there are several, and why it goes through the host, if it could be direct.
    fn exchange(models: &[(&mut Imp, Vec<usize>)]) -> Result<(Option<Exchange>, Option<String>), StageError> {
        if models.len() < 2 {
            return Ok((None, None));
        }
        let of = |(model, share): &(&mut Imp, Vec<usize>)| (model.vision.place(), share.clone());
        let (places, shares): (Vec<Place>, Vec<_>) = models.iter().map(of).unzip();
        let (exchange, detour) = Exchange::new(&places, &shares)?;
        Ok((Some(exchange), detour))
    }

    /// Their models and optimizers.
    pub(super) fn replicas(&mut self) -> Vec<&mut Replica<'a>> {
        self.workers.iter_mut().map(|worker| &mut worker.replica).collect()
    }

    /// The model of the first, which is that of all.
    pub(super) fn model(&mut self) -> &mut Imp {
        self.workers[0].replica.model
    }

    /// Whether features of images are kept from step to step.
    pub(super) fn keeps_features(&self) -> bool {
        self.workers.iter().all(|worker| worker.features.kept)
    }

    /// Steps taken.
    pub(super) fn steps(&self) -> u64 {
        self.workers[0].replica.optimizer.step
    }

    /// One step on `records`. Each worker has its new `images`.
    ///
    /// # Errors
    /// If a record can't be used, or a worker fails: then no model is of use any more.
    pub(super) fn step(
        &mut self,
        records: &[Record<'_>],
        images: Vec<Images>,
        parts: &Parts,
        rate: impl Fn(&Parameter) -> Rate + Sync,
    ) -> Result<Stepped, StageError> {
        let batch = Batch::new(self.model(), records)?;
        self.workers.iter_mut().zip(images).for_each(|(worker, images)| worker.images = images);
        let (loss, norm) = match &self.exchange {
            None => self.workers[0].step(&batch, parts, rate)?,
            Some(exchange) => together(&mut self.workers, exchange, &batch, parts, rate)?,
        };
        self.workers.iter_mut().for_each(|worker| worker.features.forget());
        Ok(Stepped { loss, norm, tokens: batch.tokens, labels: batch.labels })
    }

    /// The loss on the held-out records, if there are any.
    ///
    /// # Errors
    /// If a record or its image can't be read, a worker fails, or the job was cancelled.
    pub(super) fn held_out_loss(&mut self, job: &Job) -> Result<Option<Loss>, StageError> {
        let (count, exchange) = (self.workers.len(), &self.exchange);
        let check = || exchange.as_ref().map_or(Ok(()), Exchange::check).and_then(|()| job.check_cancelled());
        let stop = || exchange.iter().for_each(Exchange::stop);
        let losses = each(&mut self.workers, stop, |index, worker| {
            let Worker { replica, held_out, .. } = worker;
            let pass = Pass::inference();
            held_out
                .as_mut()
                .map(|held_out| held_out.losses(replica.model, &pass, (index, count), check, |_| {}))
                .transpose()
        })?;
        Ok(losses.into_iter().collect::<Option<Vec<_>>>().map(|losses| total(in_turn(losses))))
    }
}

/// What the workers found for the parts of which they take every one that is their turn, in the order of the parts.
fn in_turn<T>(found: Vec<Vec<T>>) -> impl Iterator<Item = T> {
    let mut found: Vec<_> = found.into_iter().map(Vec::into_iter).collect();
    let mut turn = 0..;
    std::iter::from_fn(move || {
        let count = found.len().max(1);
        found.get_mut(turn.next()? % count)?.next()
    })
}

/// One step of several workers. Returns the loss, and the global norm of the gradients.
fn together(
    workers: &mut [Worker<'_>],
    exchange: &Exchange,
    batch: &Batch<'_>,
    parts: &Parts,
    rate: impl Fn(&Parameter) -> Rate + Sync,
) -> Result<(f32, f32), StageError> {
    let (count, stop) = (workers.len(), || exchange.stop());
    let losses = each(workers, stop, |index, worker| worker.add_up(batch, parts, (index, count), exchange))?;
    let squares = each(workers, stop, |_, worker| {
        let share = &worker.replica.optimizer.share;
        worker.sums = exchange.take(share, &worker.place);
        Ok(share.iter().copied().zip(squares(&worker.sums)).collect::<Vec<_>>())
    })?;
    let in_order: BTreeMap<usize, f64> = squares.into_iter().flatten().collect();
    let norm = global_norm(in_order.into_values());
    each(workers, stop, |_, worker| {
        worker.update(norm, &rate, exchange);
        Ok(())
    })?;
    each(workers, stop, |_, worker| {
        worker.receive(exchange);
        Ok(())
    })?;
    exchange.end();
    let mut losses = in_turn(losses);
    let first = losses.next().unwrap_or_default();
    Ok((losses.fold(first, |sum, loss| sum + loss), norm))
}

impl<'a> Worker<'a> {
    fn new(
        replica: Replica<'a>,
        precision: Precision,
        (data, validation): (&Mixture, Option<&'a Mixture>),
    ) -> Result<Self, StageError> {
        let features = Features::new(replica.model, data, precision)?;
        let held_out = validation.map(|set| HeldOut::new(set, replica.model, precision)).transpose()?;
        let place = replica.model.vision.place();
        Ok(Self { replica, place, features, held_out, images: Images::default(), sums: Vec::new() })
    }

    fn encode(&mut self) {
        self.features.encode(self.replica.model, std::mem::take(&mut self.images));
    }

    /// One step of a worker that is alone. Returns the loss, and the global norm of the gradients.
    fn step(
        &mut self,
        batch: &Batch<'_>,
        parts: &Parts,
        rate: impl Fn(&Parameter) -> Rate + Sync,
    ) -> Result<(f32, f32), StageError> {
        let place = self.place.clone();
        place.run(|| {
            self.encode();
            let Replica { model, optimizer } = &mut self.replica;
            let (loss, gradients) = batch.gradients(model, &self.features, parts)?;
            Ok(optimizer.update_and_read(model, &gradients, &loss, &rate))
        })
    }

    /// Adds the gradients of its parts to those of the others. Returns the loss of each.
    fn add_up(
        &mut self,
        batch: &Batch<'_>,
        parts: &Parts,
        (index, count): (usize, usize),
        exchange: &Exchange,
    ) -> Result<Vec<f32>, StageError> {
        self.encode();
        let mut losses = Vec::new();
        for (number, records) in batch.parts(parts).skip(index).step_by(count) {
            exchange.check()?;
            let (loss, pass) = batch.forward(self.replica.model, &self.features, parts, number, records)?;
            let (sender, finished) = mpsc::channel();
            thread::scope(|scope| {
                // It has the sender until it is dropped, also if this ends early.
                let pass = pass;
                let add = || finished.into_iter().try_for_each(|some| exchange.add(number, some));
                let adding = thread::Builder::new().spawn_scoped(scope, add).map_err(|error| no_thread(&error))?;
                let place = self.place.clone();
                self.replica.model.backward(&pass.graph, &loss, move |gradients| {
                    // It does not go on if another worker has failed, and then this one ends too.
                    let _ = sender.send(Finished { gradients, point: place.point() });
                });
                // The next part's gradients find the memory free.
                adding.join().unwrap_or_else(|panic| resume_unwind(panic))
            })?;
            losses.push(loss.item());
        }
        Ok(losses)
    }

    /// Updates its share of the parameters, and gives them to the others.
    fn update(&mut self, norm: f32, rate: impl Fn(&Parameter) -> Rate, exchange: &Exchange) {
        let Replica { model, optimizer } = &mut self.replica;
        optimizer.update_share(model, &std::mem::take(&mut self.sums), norm, rate);
        let mut numbers = optimizer.share.iter();
        model.visit(&optimizer.share, &mut |_, weight| {
            if let Some(number) = numbers.next() {
                exchange.give(*number, weight);
            }
        });
        self.place.point().wait();
    }

    /// Takes over what the others have updated.
    fn receive(&mut self, exchange: &Exchange) {
        let Replica { model, optimizer } = &mut self.replica;
        // After all that still uses the weights as they are.
        let mut transfer = Transfer::after(&self.place.point());
        let (mut number, mut own) = (0, optimizer.share.iter().peekable());
        model.trainable(&mut |_, weight| {
            if own.next_if_eq(&&number).is_none() {
                exchange.receive(number, weight, &mut transfer);
            }
            number += 1;
        });
        transfer.finish().unwrap_or_else(|fault| fault.raise());
    }
}
