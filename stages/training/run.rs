//! The training loop. Does not know what trains, or where the result goes.

use std::{collections::HashMap, time::Instant};

use imp_model::{
    Imp, Sample,
    layers::Pass,
    optim::{Optimizer, Rate},
    schedule::warmup_steps,
    tensor::{self, AdamW, Mat},
};

use super::{
    Recipe,
    batches::{Batches, Images, decode_ahead},
    checkpoint::{self, Position},
};
use crate::{
    Job, StageError,
    event::Progress,
    preprocess::records::{Record, RecordSet},
};

/// Features of images are kept in memory if all of them take less than this: the encoder is frozen, so they
/// never change.
const FEATURE_MEMORY: usize = 512 << 20;
/// The final loss is the mean over so many last steps.
const LAST: usize = 20;
/// Samples that go through the model at once, unless the pipeline says otherwise.
const MICRO_BATCH: usize = 16;

/// Trains what is trainable in `model`, from the last checkpoint if there is one.
pub(crate) fn train(model: &mut Imp, recipe: &Recipe, data: &RecordSet, job: &Job) -> Result<(), StageError> {
    let batches = Batches::new(recipe, data, job.seed());
    if batches.steps.is_empty() {
        return Err(StageError::failed(
            "there are no records to train on",
            "look at what the preprocess stage rejected",
        ));
    }
    let settings = AdamW {
        beta1: recipe.adam_beta1,
        beta2: recipe.adam_beta2,
        epsilon: recipe.adam_epsilon,
        weight_decay: recipe.weight_decay,
    };
    let mut optimizer = Optimizer::new(model, settings, recipe.max_grad_norm);
    let position = checkpoint::load(job, model, &mut optimizer);
    job.open_metrics(position.step as u64)?;

    let vision = &model.vision.config;
    let feature_bytes = vision.patches() * vision.hidden_size * size_of::<f32>();
    let keep = data.meta().images.saturating_mul(feature_bytes) <= FEATURE_MEMORY;
    let size = vision.image_size;
    let first = position.step.min(batches.steps.len());
    std::thread::scope(|scope| {
        let images = decode_ahead(scope, data, &batches.steps[first..], size, keep);
        let (features, began) = (HashMap::new(), Instant::now());
        let mut run =
            Run { model, recipe, data, job, optimizer, position, features, keep, saved: began, examples: 0, tokens: 0 };
        for records in &batches.steps[first..] {
            let decoded = images.recv().map_err(|_| StageError::failed("the image loader ended", "run it again"))??;
            run.step(records, decoded, batches.steps.len())?;
        }
        run.report(began.elapsed().as_secs_f64());
        Ok(())
    })
}

struct Run<'a> {
    model: &'a mut Imp,
    recipe: &'a Recipe,
    data: &'a RecordSet,
    job: &'a Job,
    optimizer: Optimizer,
    position: Position,
    /// Features by image number, `[patches * hidden]`.
    features: HashMap<u32, Vec<f32>>,
    keep: bool,
    saved: Instant,
    /// Trained on by this process, for the speed.
    examples: usize,
    /// The same, in positions of the language model.
    tokens: usize,
}

impl Run<'_> {
    fn step(&mut self, records: &[usize], images: Images, total: usize) -> Result<(), StageError> {
        self.encode(images);
        let index = self.position.step;
        let (loss, gradients) = self.loss_and_gradients(index, records)?;
        let recipe = self.recipe;
        let factor = recipe.lr_scheduler.factor(index, warmup_steps(recipe.warmup_ratio, total), total);
        let learning_rate = recipe.learning_rate * factor;
        let projector_rate = recipe.projector_learning_rate.map_or(learning_rate, |rate| rate * factor);
        let norm = self.optimizer.update(self.model, &gradients, |name| Rate {
            learning_rate: if name.contains("mm_projector") { projector_rate } else { learning_rate },
            // As transformers: norms and biases don't decay.
            weight_decay: if name.contains("bias") || name.contains("norm") { 0.0 } else { recipe.weight_decay },
        });
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.diverged(records, loss));
        }
        self.examples += records.len();
        let position = &mut self.position;
        position.step += 1;
        position.losses.push(loss);
        let surplus = position.losses.len().saturating_sub(LAST);
        position.losses.drain(..surplus);
        let (step, loss) = (position.step, f64::from(loss));
        if step.is_multiple_of(self.job.runtime().log_steps.max(1)) || step == total {
            let values = [("loss", loss), ("learning_rate", learning_rate), ("grad_norm", f64::from(norm))];
            self.job.metrics(step as u64, &values)?;
        }
        self.job.progress(Progress::new(step, total, "steps").with("loss", loss));
        if !self.keep {
            self.features.clear();
        }
        self.save_if_due()
    }

    /// Encodes each image by itself, so that its features don't depend on which others came along.
    fn encode(&mut self, images: Images) {
        let model = &*self.model;
        self.features.extend(
            images.into_iter().map(|(number, pixels)| (number, model.encode_images(&[pixels]).values().to_vec())),
        );
    }

    /// The loss of a whole batch and its gradients, added up over parts of it.
    fn loss_and_gradients(&mut self, step: usize, records: &[usize]) -> Result<(f32, Vec<Vec<f32>>), StageError> {
        let records = records.iter().map(|number| self.data.record(*number)).collect::<Result<Vec<_>, _>>()?;
        let mut count = 0;
        for record in &records {
            let images: Vec<usize> = (0..record.image_numbers().len()).collect();
            let sample = Sample { input_ids: record.input_ids, labels: record.labels, images: &images };
            if let Some(fault) = self.model.fault(&sample) {
                return Err(StageError::failed(
                    format!("record `{}` can't be trained on: {fault}", record.id),
                    "preprocess the data with the tokenizer of this model",
                ));
            }
            count += self.model.labelled(&sample);
        }
        // A seed for each step, so that a resumed run drops what an uninterrupted one does.
        let seed = self.job.seed() ^ (step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (mut loss, mut total): (f32, Vec<Vec<f32>>) = (0.0, Vec::new());
        let micro_batch = match self.job.runtime().micro_batch_size {
            0 => MICRO_BATCH,
            size => size,
        };
        for (part, records) in records.chunks(micro_batch).enumerate() {
            let pass = Pass::training(seed, part * micro_batch);
            let (part_loss, gradients) = self.part(records, count, &pass)?;
            loss += part_loss;
            if total.is_empty() {
                total = gradients;
            } else {
                total.iter_mut().zip(gradients).for_each(|(to, from)| tensor::accumulate(to, &from, 1.0));
            }
        }
        Ok((loss, total))
    }

    fn part(&mut self, records: &[Record<'_>], count: usize, pass: &Pass) -> Result<(f32, Vec<Vec<f32>>), StageError> {
        let mut features = Vec::new();
        let mut rows = Vec::new();
        let mut images = Vec::new();
        for record in records {
            images.push((rows.len()..rows.len() + record.image_numbers().len()).collect::<Vec<_>>());
            for number in record.image_numbers() {
                let Some(known) = self.features.get(number) else {
                    return Err(StageError::failed(
                        format!("record `{}`: its image was not loaded", record.id),
                        "run it again",
                    ));
                };
                features.extend_from_slice(known);
                rows.push(number);
            }
        }
        let (width, patches) = (self.model.vision.config.hidden_size, self.model.vision.config.patches());
        let tokens = records.iter().map(|record| record.input_ids.len()).sum::<usize>() + rows.len() * (patches - 1);
        let features = Mat::new(features.len() / width, width, features);
        let samples: Vec<Sample<'_>> = records
            .iter()
            .zip(&images)
            .map(|(record, images)| Sample { input_ids: record.input_ids, labels: record.labels, images })
            .collect();
        let loss = self.model.loss(pass, &samples, &features, count);
        let value = loss.values()[0];
        self.tokens += tokens;
        Ok((value, self.model.gradients(&mut pass.graph.backward(&loss))))
    }

    fn report(&self, seconds: f64) {
        let losses = &self.position.losses;
        self.job.result("loss", f64::from(losses.iter().sum::<f32>()) / losses.len().max(1) as f64);
        // A run that resumes after its last step has no speed.
        if self.examples > 0 {
            self.job.result("examples_per_second", self.examples as f64 / seconds);
            self.job.result("tokens_per_second", self.tokens as f64 / seconds);
        }
    }

    fn save_if_due(&mut self) -> Result<(), StageError> {
        let runtime = self.job.runtime();
        let by_steps = runtime.checkpoint_steps > 0 && self.position.step.is_multiple_of(runtime.checkpoint_steps);
        let by_time = self.saved.elapsed().as_secs_f64() >= runtime.checkpoint_seconds;
        let cancelled = self.job.cancelled();
        if by_steps || by_time || cancelled {
            checkpoint::save(self.job, self.model, &self.optimizer, &self.position)?;
            self.saved = Instant::now();
        }
        if cancelled { Err(StageError::Cancelled) } else { Ok(()) }
    }

    fn diverged(&self, records: &[usize], loss: f32) -> StageError {
        let ids: Vec<&str> = records
            .iter()
            .filter_map(|number| self.data.record(*number).ok())
            .map(|record| record.id)
            .take(8)
            .collect();
        StageError::failed(
            format!(
                "training diverged in step {}: the loss is {loss} (records {}, ...)",
                self.position.step + 1,
                ids.join(", ")
            ),
            "try a smaller learning_rate, a larger warmup_ratio or a smaller max_grad_norm; the last checkpoint is kept",
        )
    }
}
