//! The training loop. Independent of what trains and of where the result goes.

use std::time::Instant;

use imp_model::{
    Imp,
    layers::Pass,
    memory::{Training, Trains},
    optim::Optimizer,
    tensor::AdamW,
};

use super::{
    Recipe,
    batches::{Batches, Images, decode_ahead},
    checkpoint::{self, Position},
    divergence,
    features::{Features, device_bytes},
    gradients::{self, Batch, Parts},
    held_out::{self, Best, HeldOut},
    labels,
    policy::{Card, Cut},
    sizes::Sizes,
    speed::{Speed, Work},
};
use crate::{Job, StageError, contract::event::Progress, data::mixture::Mixture};

/// Trains what is trainable in `model`, which is the projector and `trains`, from the last checkpoint if there is one.
pub(crate) fn train(
    model: &mut Imp,
    trains: Trains<'_>,
    recipe: &Recipe,
    data: &Mixture,
    validation: Option<&Mixture>,
    job: &Job,
) -> Result<(), StageError> {
    Batches::check(recipe, data)?;
    let batches = Batches::new(recipe, data, job.seed());
    check(model, recipe, &batches, (data, validation), job)?;
    let total = batches.steps.len();
    let settings = AdamW { beta1: recipe.adam_beta1, beta2: recipe.adam_beta2, epsilon: recipe.adam_epsilon };
    let cut = cut(model, trains, recipe, (data, validation), &batches, job);
    let mut optimizer = Optimizer::new(model, settings, recipe.max_grad_norm);
    let position = checkpoint::load(job, model, &mut optimizer, recipe.keep_best);
    job.open_metrics(position.step as u64)?;

    let features = Features::new(model, data, recipe.precision)?;
    let held_out = validation.map(|set| HeldOut::new(set, model, recipe.precision)).transpose()?;
    let (encoder, first) = (model.vision.config.clone(), position.step.min(batches.steps.len()));
    std::thread::scope(|scope| {
        let images = decode_ahead(scope, data, &batches.steps[first..], &encoder, features.kept);
        let began = Instant::now();
        let speed = Speed::new(began);
        let mut run = Run {
            model,
            cut,
            recipe,
            data,
            job,
            optimizer,
            position,
            features,
            held_out,
            saved: began,
            speed,
            jumps: 0,
        };
        for records in &batches.steps[first..] {
            let asked = Instant::now();
            let decoded = images.recv().map_err(|_| StageError::failed("the image loader ended", "run it again"))??;
            run.step(records, decoded, asked, total)?;
        }
        run.finish()
    })
}

/// Checks before hours of work that something can be learned, and warns of what will be of no use.
fn check(
    model: &Imp,
    recipe: &Recipe,
    batches: &Batches,
    (data, validation): (&Mixture, Option<&Mixture>),
    job: &Job,
) -> Result<(), StageError> {
    if batches.steps.is_empty() {
        return Err(StageError::failed(
            "there are no records to train on",
            "look at what the preprocess stage rejected",
        ));
    }
    model
        .llm
        .config
        .check_context(model.config.tokenizer_model_max_length)
        .map_err(|message| StageError::failed(message, "give a smaller `max_length`"))?;
    if recipe.eval_steps == 0 && validation.is_some() {
        job.warn("`validation` is not used: set `eval_steps` to measure the loss on it");
    }
    labels::check(model, data, "data", job)?;
    if let Some(validation) = validation.filter(|_| recipe.eval_steps > 0) {
        labels::check(model, validation, "validation", job)?;
    }
    let total = batches.steps.len();
    if recipe.warmup(total) >= total {
        job.warn(format!(
            "all {total} step(s) are warmup, and the first has a learning rate of 0: to learn more, give more epochs, a \
             smaller global_batch_size, or `warmup_ratio = 0`"
        ));
    }
    Ok(())
}

/// How the batches are cut on the device where `model` lies.
fn cut(
    model: &Imp,
    trains: Trains<'_>,
    recipe: &Recipe,
    (data, validation): (&Mixture, Option<&Mixture>),
    batches: &Batches,
    job: &Job,
) -> Cut {
    let (llm, vision, batch) = (&model.llm.config, &model.vision.config, recipe.global_batch_size);
    let Some(device) = model.vision.place().device else { return Cut::on_cpu(job.runtime(), llm, batch) };
    let projector = model.config.mm_projector_type;
    let vision_layers = recipe.vision_layers;
    let training = Training { llm, vision, projector, trains, vision_layers, gradient_checkpointing: false };
    let images = [Some(data), validation].into_iter().flatten().map(Mixture::images);
    let kept: u64 = images.map(|images| device_bytes(vision, images, recipe.precision)).sum();
    // What trains is on the device already, and is counted by the step.
    let frozen = device.live_bytes().saturating_sub(4 * training.trained() as u64) + kept;
    let card = Card { total: device.total_bytes(), frozen, precision: recipe.precision };
    let sizes = Sizes { patches: vision.patches(), max_length: model.config.tokenizer_model_max_length };
    Cut::on_card(job.runtime(), &training, batch, card, |size| sizes.largest(data, batches, size))
}

struct Run<'a> {
    model: &'a mut Imp,
    cut: Cut,
    recipe: &'a Recipe,
    data: &'a Mixture,
    job: &'a Job,
    optimizer: Optimizer,
    position: Position,
    features: Features,
    held_out: Option<HeldOut<'a>>,
    saved: Instant,
    speed: Speed,
    /// Steps with a loss far above those before.
    jumps: usize,
}

impl Run<'_> {
    /// One step on `records`, whose new images were requested at `asked` and have just arrived.
    fn step(&mut self, records: &[usize], images: Images, asked: Instant, total: usize) -> Result<(), StageError> {
        let waited = asked.elapsed().as_secs_f64();
        self.features.encode(self.model, images);
        let index = self.position.step;
        let batch = self.batch(index, records)?;
        let rates = self.recipe.rates(index, total);
        let norm = self.optimizer.update(self.model, &batch.gradients, |parameter| rates.of(parameter));
        divergence::check_step(batch.loss, norm).map_err(|what| self.diverged(records, &what))?;
        // A step without labels has no loss, and would count as a perfect one.
        let learned = batch.labels > 0;
        if learned {
            self.note_jump(records, batch.loss);
        }
        self.position.add(Some(batch.loss).filter(|_| learned));
        let vocab_size = self.model.llm.config.vocab_size;
        divergence::check_mean(&self.position.losses, vocab_size).map_err(|what| self.diverged(records, &what))?;
        self.features.forget();
        let validation_loss = self.look_at_held_out(total)?;
        let work =
            Work { seconds: asked.elapsed().as_secs_f64(), waited, examples: records.len(), tokens: batch.tokens };
        self.speed.add(&work);
        let (step, loss) = (self.position.step, f64::from(batch.loss));
        if step.is_multiple_of(self.job.runtime().log_steps.max(1)) || step == total || validation_loss.is_some() {
            let mut values = vec![("learning_rate", rates.language), ("grad_norm", f64::from(norm))];
            values.extend(learned.then_some(("loss", loss)));
            values.extend(work.figures());
            values.extend(validation_loss.map(|loss| ("validation_loss", f64::from(loss))));
            self.job.metrics(step as u64, &values)?;
        }
        let progress = Progress::new(step, total, "steps");
        self.job.progress(if learned { progress.with("loss", loss) } else { progress });
        self.save_if_due()
    }

    /// Warns of a loss that is far above those of the last steps: training may have diverged without becoming infinite.
    fn note_jump(&mut self, records: &[usize], loss: f32) {
        let Some(best) = divergence::jump(loss, &self.position.losses) else { return };
        self.jumps += 1;
        if self.jumps > divergence::MOST_WARNINGS {
            return;
        }
        let numbers = records.iter().take(8).filter_map(|number| self.data.record(*number).ok());
        let ids: Vec<&str> = numbers.map(|record| record.id).collect();
        self.job.caution(format!(
            "the loss of step {} is {loss:.3}, over {} times the best of the last {}, {best:.3} (records {}, ...): a smaller \
             learning_rate or max_grad_norm may be needed",
            self.position.step + 1,
            divergence::JUMP,
            self.position.losses.len(),
            ids.join(", ")
        ));
    }

    /// The loss and the gradients of the batch of a step.
    fn batch(&mut self, step: usize, records: &[usize]) -> Result<Batch, StageError> {
        let records = records.iter().map(|number| self.data.record(*number)).collect::<Result<Vec<_>, _>>()?;
        // A seed for each step, so that dropout and noise are the same in a resumed run.
        let seed = self.job.seed() ^ (step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let noise = self.recipe.neftune_noise_alpha;
        let parts = Parts { size: self.cut.size, recompute: self.cut.recompute, seed, noise };
        gradients::of_batch(self.model, &self.features, &records, &parts)
    }

    /// The held-out loss, if it is due; saves the weights if it is the smallest so far.
    fn look_at_held_out(&mut self, total: usize) -> Result<Option<f32>, StageError> {
        let (step, every) = (self.position.step, self.recipe.eval_steps);
        let Some(held_out) = self.held_out.as_mut().filter(|_| every > 0) else { return Ok(None) };
        if !step.is_multiple_of(every) && step != total {
            return Ok(None);
        }
        let loss = held_out.loss(self.model, &Pass::inference(), self.job, |_| {})?;
        if self.position.best.is_none_or(|best| loss < best.loss) {
            if self.recipe.keep_best {
                held_out::keep(self.job, self.model, step)?;
            }
            self.position.best = Some(Best { step, loss });
        }
        Ok(Some(loss))
    }

    /// Restores the best weights if they are the result, and reports the final figures.
    fn finish(self) -> Result<(), StageError> {
        if self.jumps > divergence::MOST_WARNINGS {
            self.job.caution(format!("{} steps had such a jump of the loss", self.jumps));
        }
        if let Some(best) = self.position.best {
            self.job.result("validation_loss", f64::from(best.loss));
            self.job.result("best_step", best.step as f64);
            if self.recipe.keep_best {
                held_out::go_back(self.job, self.model, best.step)?;
            }
        }
        let losses = &self.position.losses;
        self.job.result("loss", f64::from(losses.iter().sum::<f32>()) / losses.len().max(1) as f64);
        for (name, value) in self.speed.figures() {
            self.job.result(name, value);
        }
        Ok(())
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

    /// The error of the optimizer's last step, on `records`.
    fn diverged(&self, records: &[usize], what: &str) -> StageError {
        let ids = records.iter().filter_map(|number| self.data.record(*number).ok()).map(|record| record.id);
        divergence::error(self.optimizer.step, what, ids)
    }
}
