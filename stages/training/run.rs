//! The training loop. Independent of what trains and of where the result goes.

use std::time::Instant;

use imp_model::{
    Imp,
    memory::{Training, Trains},
    tensor::Place,
};

use super::{
    Recipe,
    batches::{Batches, Deal, Images, decode_ahead},
    checkpoint::{self, Position},
    divergence,
    features::device_bytes,
    gradients::Parts,
    held_out::{self, Best},
    labels,
    policy::{Card, Cut},
    recipe::Rates,
    sizes::Sizes,
    speed::{Speed, Work},
    team::{Stepped, Team},
};
use crate::{Job, StageError, contract::event::Progress, data::mixture::Mixture, place::replicas};

/// Trains what is trainable in `model`, which is the projector and `trains`, from the last checkpoint if there is one. It is moved
/// to the first of `places`; replicas of it at the others share the work.
pub(crate) fn train(
    model: &mut Imp,
    places: &[Place],
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
    let mut replicas = replicas(model, places, Imp::move_to)?;
    let cut = cut(model, places, trains, recipe, (data, validation), &batches, job);
    let deal = Deal { size: cut.size, workers: places.len() };
    remark_idle(deal, &batches, job);
    let encoder = model.vision.config.clone();
    let mut team = Team::new(std::iter::once(model).chain(&mut replicas), recipe, (data, validation))?;
    if let Some(reason) = &team.detour {
        job.warn(format!("what its GPUs exchange goes through the host's memory, which takes longer: {reason}"));
    }
    let position = checkpoint::load(job, &mut team.replicas(), recipe.keep_best)?;
    job.open_metrics(position.step as u64)?;

    let first = position.step.min(batches.steps.len());
    std::thread::scope(|scope| {
        let images = decode_ahead(scope, data, &batches.steps[first..], &encoder, deal, team.keeps_features());
        let began = Instant::now();
        let speed = Speed::new(began);
        let mut run = Run { team, cut, recipe, data, job, position, saved: began, speed, jumps: 0 };
        if run.position.is_held_out_due {
            run.look_at_held_out()?;
            run.save()?;
        }
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

/// Warns if there are workers without work.
fn remark_idle(deal: Deal, batches: &Batches, job: &Job) {
    let Deal { size, workers } = deal;
    let records = batches.steps.iter().map(Vec::len).max().unwrap_or(0);
    let parts = records.div_ceil(size);
    if parts >= workers {
        return;
    }
    let remedy = match records / workers {
        0 => format!("`gpus = {records}` is enough"),
        fair => {
            format!("`micro_batch_size = {fair}` under its runtime gives work to all, and changes results by rounding")
        }
    };
    job.warn(format!(
        "of its {workers} GPUs only {parts} can have work: a batch of {records} has {parts} part(s) of up to {size}; {remedy}"
    ));
}

/// How the batches are cut on the devices of `places`, on the first of which `model` lies. The number of devices has no part in it,
/// since the cut affects the result by rounding.
fn cut(
    model: &Imp,
    places: &[Place],
    trains: Trains<'_>,
    recipe: &Recipe,
    (data, validation): (&Mixture, Option<&Mixture>),
    batches: &Batches,
    job: &Job,
) -> Cut {
    let (llm, vision, batch) = (&model.llm.config, &model.vision.config, recipe.global_batch_size);
    let Some(device) = model.vision.place().device else {
        return Cut::on_cpu(job.runtime(), llm, batch, rayon::current_num_threads());
    };
    let projector = model.config.mm_projector_type;
    let vision_layers = recipe.vision_layers;
    let training = Training { llm, vision, projector, trains, vision_layers, gradient_checkpointing: false };
    let validation = validation.filter(|_| recipe.eval_steps > 0);
    let images = [Some(data), validation].into_iter().flatten().map(Mixture::images);
    let kept: u64 = images.map(|images| device_bytes(vision, vision_layers, images, recipe.precision)).sum();
    // What trains is on the device already, and is counted by the step.
    let frozen = device.live_bytes().saturating_sub(4 * training.trained() as u64) + kept;
    let totals = places.iter().filter_map(|place| Some(place.device.as_ref()?.total_bytes()));
    let card = Card { total: totals.min().unwrap_or(0), frozen, precision: recipe.precision };
    let sizes = Sizes { patches: vision.patches(), max_length: model.config.tokenizer_model_max_length };
    Cut::on_card(job.runtime(), &training, batch, card, |size| sizes.largest(data, batches, size))
}

struct Run<'a> {
    team: Team<'a>,
    cut: Cut,
    recipe: &'a Recipe,
    data: &'a Mixture,
    job: &'a Job,
    position: Position,
    saved: Instant,
    speed: Speed,
    /// Steps with a loss far above those before.
    jumps: usize,
}

impl Run<'_> {
    /// One step on `records`, whose new images were requested at `asked` and have just arrived.
    fn step(&mut self, records: &[usize], images: Vec<Images>, asked: Instant, total: usize) -> Result<(), StageError> {
        let waited = asked.elapsed().as_secs_f64();
        let rates = self.recipe.rates(self.position.step, total);
        let batch = self.update(records, images, &rates)?;
        divergence::check_step(batch.loss, batch.norm).map_err(|what| self.diverged(records, &what))?;
        // A step without labels has no loss, and would count as a perfect one.
        let learned = batch.labels > 0;
        if learned {
            self.note_jump(records, batch.loss);
        }
        self.position.add(Some(batch.loss).filter(|_| learned));
        let vocab_size = self.team.model().llm.config.vocab_size;
        divergence::check_mean(&self.position.losses, vocab_size).map_err(|what| self.diverged(records, &what))?;
        let work =
            Work { seconds: asked.elapsed().as_secs_f64(), waited, examples: records.len(), tokens: batch.tokens };
        self.speed.add(&work);
        let (step, loss) = (self.position.step, f64::from(batch.loss));
        let every = self.recipe.eval_steps;
        let is_held_out_due = every > 0 && (step.is_multiple_of(every) || step == total);
        if step.is_multiple_of(self.job.runtime().log_steps.max(1)) || step == total || is_held_out_due {
            let mut values = vec![("learning_rate", rates.language), ("grad_norm", f64::from(batch.norm))];
            values.extend(learned.then_some(("loss", loss)));
            values.extend(work.figures());
            self.job.metrics(step as u64, &values)?;
        }
        let progress = Progress::new(step, total, "steps");
        self.job.progress(if learned { progress.with("loss", loss) } else { progress });
        if is_held_out_due {
            self.look_at_held_out()?;
        }
        self.save_if_due()
    }

    /// Warns of a loss that is far above those of the last steps: training may have diverged without becoming infinite.
    fn note_jump(&mut self, records: &[usize], loss: f32) {
        let Some(worst) = divergence::jump(loss, &self.position.losses) else { return };
        self.jumps += 1;
        if self.jumps > divergence::MOST_WARNINGS {
            return;
        }
        let numbers = records.iter().take(8).filter_map(|number| self.data.record(*number).ok());
        let ids: Vec<&str> = numbers.map(|record| record.id).collect();
        self.job.caution(format!(
            "the loss of step {} is {loss:.3}, at least {} times the worst of {} steps before, {worst:.3} (records {}, ...): if these \
             are not records of another kind, a smaller learning_rate or max_grad_norm may be needed",
            self.position.step + 1,
            divergence::JUMP,
            self.position.losses.len() - divergence::LATEST,
            ids.join(", ")
        ));
    }

    /// The next update of the weights.
    fn update(&mut self, records: &[usize], images: Vec<Images>, rates: &Rates) -> Result<Stepped, StageError> {
        let records = records.iter().map(|number| self.data.record(*number)).collect::<Result<Vec<_>, _>>()?;
        // A seed for each step, so that dropout and noise are the same in a resumed run.
        let seed = self.job.seed() ^ (self.position.step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let noise = self.recipe.neftune_noise_alpha;
        let Cut { size, at_once, recompute } = self.cut;
        let parts = Parts { size, at_once, recompute, seed, noise };
        self.team.step(&records, images, &parts, |parameter| rates.of(parameter))
    }

    /// Measures the held-out loss, and saves the weights if it is the smallest so far. If that is interrupted, the resumed run begins
    /// with it.
    fn look_at_held_out(&mut self) -> Result<(), StageError> {
        let step = self.position.step;
        let found = self.team.held_out_loss(self.job);
        if matches!(found, Err(StageError::Cancelled)) {
            self.position.is_held_out_due = true;
            self.save()?;
        }
        let Some(loss) = found? else { return Ok(()) };
        divergence::check_held_out(step, &loss)?;
        let loss = loss.mean;
        if self.position.best.is_none_or(|best| loss < best.loss) {
            if self.recipe.keep_best {
                held_out::keep(self.job, self.team.model(), step)?;
            }
            self.position.best = Some(Best { step, loss });
        }
        self.position.is_held_out_due = false;
        self.job.metrics(step as u64, &[("validation_loss", f64::from(loss))])
    }

    /// Restores the best weights if they are the result, and reports the final figures.
    fn finish(mut self) -> Result<(), StageError> {
        if self.jumps > divergence::MOST_WARNINGS {
            self.job.caution(format!("{} steps had such a jump of the loss", self.jumps));
        }
        if let Some(best) = self.position.best {
            self.job.result("validation_loss", f64::from(best.loss));
            self.job.result("best_step", best.step as f64);
            if self.recipe.keep_best {
                held_out::go_back(self.job, self.team.model(), best.step)?;
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
            self.save()?;
        }
        if cancelled { Err(StageError::Cancelled) } else { Ok(()) }
    }

    fn save(&mut self) -> Result<(), StageError> {
        checkpoint::save(self.job, &mut self.team.replicas(), &self.position)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// The error of the optimizer's last step, on `records`.
    fn diverged(&self, records: &[usize], what: &str) -> StageError {
        let ids = records.iter().filter_map(|number| self.data.record(*number).ok()).map(|record| record.id);
        divergence::error(self.team.steps(), what, ids)
    }
}
