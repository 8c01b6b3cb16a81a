//! The Phi family against Imp's own code: `tests/fixtures/phi` was computed with it. Tolerances are those of
//! the fixtures: 1e-4 for features, embeddings and logits (the noise between two reference implementations is
//! 1.4e-5, the smallest real mistake 1.6e-4), 1e-5 for losses, 1e-4 of the largest entry for gradients.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use imp_model::{
    GenerateOptions, Imp,
    layers::Pass,
    optim::{Optimizer, Rate},
    save::{self, DType},
    schedule::{Schedule, warmup_steps},
    tensor::AdamW,
};
use support::{Batch, Fixture, assert_close, model, model_with_lora, path};

#[test]
fn vision_features_and_projection() {
    let (model, expected) = (model(), Fixture::open("phi/expected/vision.safetensors"));
    let features = model.encode_images(&expected.images("pixel_values"));
    assert_close("features", features.values(), &expected.f32("features"), 1e-4);
    let projected = model.projector.forward(&Pass::inference(), &features);
    assert_close("projected", projected.values(), &expected.f32("projected"), 1e-4);
}

#[test]
fn logits_and_losses_of_batches() {
    let model = model();
    for name in ["mm_single", "mm_batch", "mm_two_images"] {
        let expected = Fixture::open(&format!("phi/expected/{name}.safetensors"));
        check_batch(&model, name, &Batch::read(&expected, ""), &expected);
    }
}

#[test]
fn truncation_comes_after_the_splice() {
    let mut model = model();
    model.config.tokenizer_model_max_length = 18;
    let inputs = Fixture::open("phi/expected/mm_batch.safetensors");
    check_batch(
        &model,
        "mm_truncated",
        &Batch::read(&inputs, ""),
        &Fixture::open("phi/expected/mm_truncated.safetensors"),
    );
}

/// The merged folder in two shards gives what its parts give (its weights are exact in f16).
#[test]
fn a_merged_and_sharded_checkpoint_is_the_same_model() {
    let (expected, folder) = (Fixture::open("phi/expected/mm_batch.safetensors"), tempfile::tempdir().unwrap());
    save::merged(&model(), DType::F16, folder.path()).unwrap();
    support::shard(folder.path());
    check_batch(&Imp::load(folder.path()).unwrap(), "merged", &Batch::read(&expected, ""), &expected);
}

/// The layout of the first releases: other names, other keys, and q, k, v in one matrix.
#[test]
fn a_checkpoint_as_first_published_is_the_same_model() {
    let expected = Fixture::open("phi/expected/mm_batch.safetensors");
    check_batch(&Imp::load(&path("phi/imp_msft")).unwrap(), "published", &Batch::read(&expected, ""), &expected);
}

fn check_batch(model: &Imp, name: &str, batch: &Batch, expected: &Fixture) {
    let pass = Pass::inference();
    let features = model.encode_images(&batch.images);
    let samples = batch.samples();
    let spliced = model.splice(&pass, &samples, &features);
    let hidden = model.llm.forward(&pass, &spliced.embedded, &spliced.segments);
    let logits = model.llm.logits(&pass, &hidden);
    // The reference pads on the right: row r of a sequence is row r of its padded line.
    for (tensor, mat) in [("inputs_embeds", &spliced.embedded), ("logits", &logits)] {
        if !expected.has(tensor) {
            continue;
        }
        let (values, shape) = (expected.f32(tensor), expected.shape(tensor));
        for (line, range) in spliced.segments.iter().enumerate() {
            let start = line * shape[1] * shape[2];
            let padded = &values[start..start + range.len() * shape[2]];
            let ours = &mat.values()[range.start * shape[2]..range.end * shape[2]];
            assert_close(&format!("{name} {tensor} of line {line}"), ours, padded, 1e-4);
        }
    }
    if expected.has("loss") {
        let count = samples.iter().map(|sample| model.labelled(sample)).sum();
        let loss = model.loss(&pass, &samples, &features, count);
        assert_close(&format!("{name} loss"), loss.values(), &expected.f32("loss"), 1e-5);
    }
}

#[test]
fn greedy_tokens() {
    let (model, expected) = (model(), Fixture::open("phi/expected/generate.safetensors"));
    let prompt =
        Batch { images: expected.images("pixel_values"), ids: vec![expected.ids("input_ids")], labels: vec![vec![]] };
    let features = model.encode_images(&prompt.images);
    let options = GenerateOptions { max_new_tokens: 16, stop: vec![] };
    let tokens: Vec<i32> =
        model.generate(&prompt.samples(), &features, &options)[0].iter().map(|id| *id as i32).collect();
    assert_eq!(tokens, expected.ids("new_tokens"));

    // A stop token ends the answer and is no part of it.
    let stop = tokens[5] as u32;
    let until = tokens.iter().position(|id| *id as u32 == stop).unwrap();
    let stopped =
        model.generate(&prompt.samples(), &features, &GenerateOptions { max_new_tokens: 16, stop: vec![stop] });
    assert_eq!(stopped[0].len(), until);
}

#[test]
fn prompts_in_a_batch_do_not_touch_each_other() {
    let (model, fixture) = (model(), Fixture::open("phi/expected/mm_batch.safetensors"));
    let batch = Batch::read(&fixture, "");
    let features = model.encode_images(&batch.images);
    let options = GenerateOptions { max_new_tokens: 12, stop: vec![3, 17] };
    let samples = batch.samples();
    let together = model.generate(&samples, &features, &options);
    let alone: Vec<_> =
        samples.iter().map(|sample| model.generate(&[*sample], &features, &options).remove(0)).collect();
    assert_eq!(together, alone);
}

#[test]
fn gradients_of_the_projector() {
    let mut model = model();
    model.projector.unfreeze();
    check_gradients(&mut model, "stage1_grads");
}

#[test]
fn gradients_of_projector_and_adapters() {
    let mut model = model_with_lora();
    check_gradients(&mut model, "stage2_grads");
}

fn check_gradients(model: &mut Imp, name: &str) {
    let expected = Fixture::open(&format!("phi/expected/{name}.safetensors"));
    let batch = Batch::read(&Fixture::open("phi/expected/mm_batch.safetensors"), "");
    let (loss, gradients) = loss_and_gradients(model, &batch);
    assert_close("loss", &[loss], &expected.f32("loss"), 1e-5);
    let mut gradients = gradients.into_iter();
    model.trainable(&mut |name, _| {
        let reference = expected.f32(&format!("grad.{}", reference_name(&name)));
        let largest = reference.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_close(&name, &gradients.next().unwrap(), &reference, 1e-4 * largest);
    });
}

fn loss_and_gradients(model: &mut Imp, batch: &Batch) -> (f32, Vec<Vec<f32>>) {
    let pass = Pass::training(0, 0);
    let features = model.encode_images(&batch.images);
    let samples = batch.samples();
    let count = samples.iter().map(|sample| model.labelled(sample)).sum();
    let loss = model.loss(&pass, &samples, &features, count);
    let value = loss.values()[0];
    (value, model.gradients(&mut pass.graph.backward(&loss)))
}

/// The fixtures have peft's names for adapters and the training code's for the projector.
fn reference_name(name: &str) -> String {
    if name.contains("lora_") { format!("base_model.model.{name}") } else { name.trim_start_matches("model.").into() }
}

#[test]
fn optimizer_steps() {
    for (name, clip, lora) in
        [("stage1_steps_noclip", 0.0, false), ("stage1_steps_clip1", 1.0, false), ("stage2_steps_clip1", 1.0, true)]
    {
        let expected = Fixture::open(&format!("phi/expected/{name}.safetensors"));
        let batches = Fixture::open("phi/expected/train_batches.safetensors");
        let first = Fixture::open("phi/expected/mm_batch.safetensors");
        let batches = [Batch::read(&first, ""), Batch::read(&batches, "B.")];
        let mut model = if lora { model_with_lora() } else { model() };
        model.projector.unfreeze();
        let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(&mut model, settings, clip);
        for step in 0..4 {
            let (loss, gradients) = loss_and_gradients(&mut model, &batches[step % 2]);
            assert_close(&format!("{name} loss {step}"), &[loss], &expected.f32("loss_before_step")[step..=step], 1e-5);
            let factor = Schedule::Cosine.factor(step, 1, 5);
            let norm = optimizer.update(&mut model, &gradients, |name| Rate {
                learning_rate: factor * if lora && name.contains("mm_projector") { 2e-3 } else { 1e-2 },
                weight_decay: 0.0,
            });
            assert_close(
                &format!("{name} norm {step}"),
                &[norm],
                &expected.f32("grad_norm_before_clip")[step..=step],
                1e-4,
            );
            if step % 2 == 1 {
                check_weights(&mut model, &gradients, &expected, &format!("step{}", step + 1));
            }
        }
    }
}

/// Entries whose gradient is under 1e-5 of the largest are left out: Adam divides by their own size.
fn check_weights(model: &mut Imp, gradients: &[Vec<f32>], expected: &Fixture, step: &str) {
    let mut gradients = gradients.iter();
    model.trainable(&mut |name, mat| {
        let gradient = gradients.next().unwrap();
        let largest = gradient.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let reference = expected.f32(&format!("{step}.{}", reference_name(&name)));
        for ((ours, theirs), gradient) in mat.values().iter().zip(reference).zip(gradient) {
            let counts = gradient.abs() >= 1e-5 * largest;
            assert!(!counts || (ours - theirs).abs() <= 1e-4, "{step} {name}: {ours} instead of {theirs}");
        }
    });
}

#[test]
fn merged_adapters_give_the_same_logits() {
    let expected = Fixture::open("phi/expected/merged.safetensors");
    let adapted = model_with_lora();
    let single = Fixture::open("phi/expected/mm_single.safetensors");
    check_batch(&adapted, "adapted", &Batch::read(&single, ""), &expected);
    let tensors = adapted.llm.tensors();
    let compared = tensors.iter().filter(|tensor| expected.has(&format!("merged.{}", tensor.name)));
    let mut count = 0;
    for tensor in compared {
        assert_close(&tensor.name, &tensor.values(), &expected.f32(&format!("merged.{}", tensor.name)), 1e-5);
        count += 1;
    }
    assert!(count > 0, "the fixture has merged weights");
}

#[test]
fn the_schedule_is_transformers() {
    let text = std::fs::read_to_string(path("cosine_schedule.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(warmup_steps(0.03, 200), 6);
    for (step, factor) in expected["lr_factor_at_step"].as_array().unwrap().iter().enumerate() {
        let ours = Schedule::Cosine.factor(step, 6, 200);
        assert!((ours - factor.as_f64().unwrap()).abs() < 1e-12, "step {step}: {ours}");
    }
}

/// Micro-batches divide by the labelled positions of the whole batch, so their sum is the large batch, whatever
/// the lengths. (The reference averages the micro-batches' means instead, which weights short ones more.)
#[test]
fn accumulated_micro_batches_are_the_large_batch() {
    let mut model = model_with_lora();
    let batch = Batch::read(&Fixture::open("phi/expected/mm_batch.safetensors"), "");
    let (loss, whole) = loss_and_gradients(&mut model, &batch);
    let features = model.encode_images(&batch.images);
    let samples = batch.samples();
    let count = samples.iter().map(|sample| model.labelled(sample)).sum();
    let (mut sum, mut gradients) = (0.0, vec![Vec::new(); whole.len()]);
    for sample in &samples {
        let pass = Pass::training(0, 0);
        let part = model.loss(&pass, &[*sample], &features, count);
        sum += part.values()[0];
        let parts = model.gradients(&mut pass.graph.backward(&part));
        for (to, from) in gradients.iter_mut().zip(parts) {
            to.resize(from.len(), 0.0);
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
    // Sums in another order: a few units in the last place of the largest entry.
    assert_close("loss", &[sum], &[loss], 2e-6);
    for (parts, whole) in gradients.iter().zip(&whole) {
        let largest = whole.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_close("gradient", parts, whole, 1e-5 * largest);
    }
}
