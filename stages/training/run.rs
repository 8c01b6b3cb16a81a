//! The training loop. Does not know what trains, or where the result goes.

use std::time::Instant;

use imp_model::{
    Imp, Sample,
    layers::{Pass, Tower},
    optim::{Optimizer, Rate},
    tensor::{self, AdamW, Mat},
};

use super::{
    Recipe,
    batches::{Batches, Images, decode_ahead},
    checkpoint::{self, Position},
    features::Features,
    held_out::{self, Best, HeldOut},
    memory::{gradient_checkpointing, micro_batch_size},
};
use crate::{
    Job, StageError,
    contract::{event::Progress, process_memory},
    data::{mixture::Mixture, records::Record},
};

/// The final loss is the mean over so many last steps.
const LAST: usize = 20;

/// Trains what is trainable in `model`, from the last checkpoint if there is one.
pub(crate) fn train(
    model: &mut Imp,
    recipe: &Recipe,
    data: &Mixture,
    validation: Option<&Mixture>,
    job: &Job,
) -> Result<(), StageError> {
    let batches = Batches::new(recipe, data, job.seed());
    if batches.steps.is_empty() {
        return Err(StageError::failed(
            "there are no records to train on",
            "look at what the preprocess stage rejected",
        ));
    }
    if recipe.eval_steps == 0 && validation.is_some() {
        job.warn("`validation` is not used: `eval_steps` says in how many steps to look at it");
    }
    let total = batches.steps.len();
    if recipe.warmup(total) >= total {
        job.warn(format!(
            "all {total} step(s) are warmup, and the first has a learning rate of 0: for more to be learnt give more epochs, a \
             smaller global_batch_size, or `warmup_ratio = 0`"
        ));
    }
    let settings = AdamW {
        beta1: recipe.adam_beta1,
        beta2: recipe.adam_beta2,
        epsilon: recipe.adam_epsilon,
        weight_decay: recipe.weight_decay,
    };
    let mut optimizer = Optimizer::new(model, settings, recipe.max_grad_norm);
    let position = checkpoint::load(job, model, &mut optimizer, recipe.keep_best);
    job.open_metrics(position.step as u64)?;

    let features = Features::new(model, data)?;
    let held_out = validation.map(|set| HeldOut::new(set, model)).transpose()?;
    let (size, first) = (model.vision.config.image_size, position.step.min(batches.steps.len()));
    std::thread::scope(|scope| {
        let images = decode_ahead(scope, data, &batches.steps[first..], size, features.kept);
        let began = Instant::now();
        let speed = Speed { began, waited: 0.0, examples: 0, tokens: 0 };
        let mut run = Run { model, recipe, data, job, optimizer, position, features, held_out, saved: began, speed };
        for records in &batches.steps[first..] {
            let asked = Instant::now();
            let decoded = images.recv().map_err(|_| StageError::failed("the image loader ended", "run it again"))??;
            run.step(records, decoded, asked, total)?;
        }
        run.finish()
    })
}

/// What this process has done, for the speed.
struct Speed {
    began: Instant,
    /// Seconds for which steps waited for images.
    waited: f64,
    examples: usize,
    /// Positions of the language model.
    tokens: usize,
}

/// The mean of the last losses, if it is beyond hope: whoever guesses among all tokens has the log of their number.
fn exploded(losses: &[f32], vocab_size: usize) -> Option<f32> {
    let mean = losses.iter().sum::<f32>() / losses.len().max(1) as f32;
    Some(mean).filter(|mean| losses.len() == LAST && *mean > 2.0 * (vocab_size as f32).ln())
}

struct Run<'a> {
    model: &'a mut Imp,
    recipe: &'a Recipe,
    data: &'a Mixture,
    job: &'a Job,
    optimizer: Optimizer,
    position: Position,
    features: Features,
    held_out: Option<HeldOut<'a>>,
    saved: Instant,
    speed: Speed,
}

impl Run<'_> {
    /// One step on `records`, whose new images were asked for at `asked` and have just come.
    fn step(&mut self, records: &[usize], images: Images, asked: Instant, total: usize) -> Result<(), StageError> {
        let waited = asked.elapsed().as_secs_f64();
        let tokens_before = self.speed.tokens;
        self.features.encode(self.model, images);
        let index = self.position.step;
        let (loss, gradients) = self.loss_and_gradients(index, records)?;
        let recipe = self.recipe;
        let factor = recipe.lr_scheduler.factor(index, recipe.warmup(total), total);
        let learning_rate = recipe.learning_rate * factor;
        let projector_rate = recipe.projector_learning_rate.map_or(learning_rate, |rate| rate * factor);
        let norm = self.optimizer.update(self.model, &gradients, |parameter| Rate {
            learning_rate: match parameter.tower {
                Tower::Projector => projector_rate,
                Tower::Language => learning_rate,
            },
            weight_decay: if parameter.decays() { recipe.weight_decay } else { 0.0 },
        });
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.diverged(
                index + 1,
                records,
                &format!("the loss is {loss}, the norm of its gradient {norm}"),
            ));
        }
        self.speed.examples += records.len();
        self.speed.waited += waited;
        let position = &mut self.position;
        position.step += 1;
        position.losses.push(loss);
        let surplus = position.losses.len().saturating_sub(LAST);
        position.losses.drain(..surplus);
        if let Some(mean) = exploded(&position.losses, self.model.llm.config.vocab_size) {
            let since = format!("the loss of the last {LAST} steps is {mean:.1}, far worse than guessing");
            return Err(self.diverged(index + 1, records, &since));
        }
        self.features.forget();
        let held_out = self.look_at_held_out(total)?;
        let (step, loss) = (self.position.step, f64::from(loss));
        if step.is_multiple_of(self.job.runtime().log_steps.max(1)) || step == total || held_out.is_some() {
            let seconds = asked.elapsed().as_secs_f64().max(1e-9);
            let mut values = vec![
                ("loss", loss),
                ("learning_rate", learning_rate),
                ("grad_norm", f64::from(norm)),
                ("examples_per_second", records.len() as f64 / seconds),
                ("tokens_per_second", (self.speed.tokens - tokens_before) as f64 / seconds),
                ("data_wait", waited),
            ];
            values.extend(process_memory::resident().map(|bytes| ("memory", bytes as f64)));
            values.extend(held_out.map(|loss| ("validation_loss", f64::from(loss))));
            self.job.metrics(step as u64, &values)?;
        }
        self.job.progress(Progress::new(step, total, "steps").with("loss", loss));
        self.save_if_due()
    }

    /// The held-out loss, if it is time for it; the weights are kept if it is the smallest so far.
    fn look_at_held_out(&mut self, total: usize) -> Result<Option<f32>, StageError> {
        let (step, every) = (self.position.step, self.recipe.eval_steps);
        let Some(held_out) = self.held_out.as_mut().filter(|_| every > 0) else { return Ok(None) };
        if !step.is_multiple_of(every) && step != total {
            return Ok(None);
        }
        let loss = held_out.loss(self.model, self.job)?;
        if self.position.best.is_none_or(|best| loss < best.loss) {
            if self.recipe.keep_best {
                held_out::keep(self.job, self.model, step)?;
            }
            self.position.best = Some(Best { step, loss });
        }
        Ok(Some(loss))
    }

    /// The loss of a whole batch and its gradients, added up over parts of it. Each labelled token counts the same; the
    /// reference averages the means of parts instead.
    fn loss_and_gradients(&mut self, step: usize, records: &[usize]) -> Result<(f32, Vec<Mat>), StageError> {
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
        let (mut loss, mut total): (f32, Vec<Mat>) = (0.0, Vec::new());
        let (runtime, llm) = (self.job.runtime(), &self.model.llm.config);
        let (micro_batch, checkpointing) = (micro_batch_size(runtime, llm), gradient_checkpointing(runtime, llm));
        for (part, records) in records.chunks(micro_batch).enumerate() {
            let pass = Pass::training(seed, part * micro_batch);
            let pass = if checkpointing { pass.with_gradient_checkpointing() } else { pass };
            let (part_loss, gradients) = self.part(records, count, &pass)?;
            loss += part_loss;
            if total.is_empty() {
                total = gradients;
            } else {
                total.iter_mut().zip(gradients).for_each(|(to, from)| tensor::accumulate(to, &from));
            }
        }
        Ok((loss, total))
    }

    fn part(&mut self, records: &[Record<'_>], count: usize, pass: &Pass) -> Result<(f32, Vec<Mat>), StageError> {
        let batch = self.features.batch(self.model, records)?;
        let patches = self.model.vision.config.patches();
        let images: usize = records.iter().map(|record| record.image_numbers().len()).sum();
        self.speed.tokens +=
            records.iter().map(|record| record.input_ids.len()).sum::<usize>() + images * (patches - 1);
        Ok(self.model.loss_and_gradients(pass, &batch.samples(), &batch.features, count))
    }

    /// Goes back to the best weights if they are the result, and reports.
    fn finish(self) -> Result<(), StageError> {
        if let Some(best) = self.position.best {
            self.job.result("validation_loss", f64::from(best.loss));
            self.job.result("best_step", best.step as f64);
            if self.recipe.keep_best {
                held_out::go_back(self.job, self.model, best.step)?;
            }
        }
        let losses = &self.position.losses;
        self.job.result("loss", f64::from(losses.iter().sum::<f32>()) / losses.len().max(1) as f64);
        let Speed { began, waited, examples, tokens } = self.speed;
        // A run that resumes after its last step has no speed.
        if examples > 0 {
            let seconds = began.elapsed().as_secs_f64();
            self.job.result("examples_per_second", examples as f64 / seconds);
            self.job.result("tokens_per_second", tokens as f64 / seconds);
            self.job.result("data_wait", waited);
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

    fn diverged(&self, step: usize, records: &[usize], what: &str) -> StageError {
        let ids: Vec<&str> = records
            .iter()
            .filter_map(|number| self.data.record(*number).ok())
            .map(|record| record.id)
            .take(8)
            .collect();
        StageError::failed(
            format!("training diverged in step {step}: {what} (records {}, ...)", ids.join(", ")),
            "try a smaller learning_rate, a larger warmup_ratio or a smaller max_grad_norm; the last checkpoint is kept",
        )
    }
}
