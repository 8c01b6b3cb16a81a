//! Whole models against Imp's original code, which computed `tests/fixtures/{phi,qwen2}`. Tolerances as in the
//! fixtures' README: 1e-4 for features, embeddings and logits (two reference implementations differ by 1.4e-5, the
//! smallest real mistake by 1.6e-4), 1e-5 for losses, 1e-4 of the largest entry for gradients.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::ops::ControlFlow;

use imp_model::{
    GenerateOptions, Imp, Side,
    config::{ConfigFile, ImpConfig, ProjectorType},
    encoding::Encoding,
    layers::{Parameter, Pass, Tower},
    optim::{Optimizer, Rate},
    projector::Projector,
    save,
    schedule::{Schedule, warmup_steps},
    tensor::{self, Activation, AdamW, Graph, IGNORE, Mat},
    weights::TensorFiles,
};
use support::{Batch, Family, Fixture, PHI, QWEN2, assert_close, loss_and_gradients, path};

#[test]
fn vision_towers_and_projections() {
    for family in [PHI, QWEN2] {
        let (model, expected) = (family.model(), family.expected("vision"));
        let images = expected.images("pixel_values");
        let states = model.vision.hidden_states(&images);
        for (number, state) in states.iter().enumerate() {
            let name = format!("hidden_states.{number}");
            assert_close(&name, &state.to_host(), &expected.f32(&name), 1e-4);
        }
        let features = model.encode_images(&images);
        assert_close("features", &features.to_host(), &expected.f32("features"), 1e-4);
        let projected = model.projector.forward(&Pass::inference(), &features);
        assert_close("projected", &projected.to_host(), &expected.f32("projected"), 1e-4);

        // A one-layer projector reads only the first layer's weights.
        let file = TensorFiles::open_file(&family.path("mm_projector.safetensors")).unwrap();
        let (from, to) = (model.vision.config.hidden_size, model.llm.config.hidden_size);
        let first = Projector::load(&file, "model.mm_projector.", ProjectorType::Mlp(1), from, to).unwrap();
        let first = first.forward(&Pass::inference(), &features);
        assert_close("proj_linear1", &first.to_host(), &expected.f32("proj_linear1"), 1e-4);
        let activated = tensor::activation(&Graph::inference(), &first, Activation::GeluErf);
        assert_close("proj_gelu", &activated.to_host(), &expected.f32("proj_gelu"), 1e-4);
    }
}

/// The index of the selected hidden state counts from either end.
#[test]
fn features_are_the_selected_hidden_state() {
    let expected = PHI.expected("vision");
    let images = expected.images("pixel_values");
    let tower = |mm_vision_select_layer| {
        let config = ImpConfig { mm_vision_select_layer, ..ImpConfig::default() };
        imp_model::load_vision(&PHI.path("siglip"), &config)
    };
    for (select, state) in [(-1, 4), (-3, 2), (-5, 0), (1, 1), (4, 4)] {
        let reference = expected.f32(&format!("hidden_states.{state}"));
        assert_close("features", &tower(select).unwrap().encode(&images).to_host(), &reference, 1e-4);
    }
    for select in [-6, 5] {
        let error = tower(select).err().unwrap().to_string();
        let message = format!("mm_vision_select_layer {select} is not a hidden state of an encoder with 4");
        assert!(error.contains(&message), "{error}");
    }
}

#[test]
fn hidden_states_of_every_layer_and_logits_of_texts() {
    for family in [PHI, QWEN2] {
        let (model, expected) = (family.model(), family.expected("text"));
        support::check_text(&model.llm, &expected);
    }
}

#[test]
fn logits_and_losses_of_batches() {
    for (family, names) in
        [(PHI, ["mm_single", "mm_batch", "mm_two_images"].as_slice()), (QWEN2, ["mm_single", "mm_batch"].as_slice())]
    {
        let model = family.model();
        for name in names {
            let expected = family.expected(name);
            check_batch(&model, name, &Batch::read(&expected, "", family.pad), &expected, Side::Right);
        }
    }
}

/// The reference generates from left-padded batches.
#[test]
fn left_padding_does_not_change_sequences() {
    for family in [PHI, QWEN2] {
        let expected = family.expected("mm_batch_left");
        check_batch(&family.model(), "mm_batch_left", &family.batch(), &expected, Side::Left);
    }
}

#[test]
fn truncation_comes_after_the_splice() {
    let mut model = PHI.model();
    model.config.tokenizer_model_max_length = 18;
    check_batch(&model, "mm_truncated", &PHI.batch(), &PHI.expected("mm_truncated"), Side::Right);
}

/// As the training code writes them (Phi's in two shards), and as first published: with different tensor names and
/// keys, and with q, k and v in one matrix.
#[test]
fn merged_models_of_both_layouts_load() {
    for (family, folder) in [(PHI, "imp"), (PHI, "imp_msft"), (QWEN2, "imp")] {
        let model = Imp::load(&family.path(folder)).unwrap();
        check_batch(&model, folder, &family.batch(), &family.expected("mm_batch"), Side::Right);
    }
}

/// The weights are exact in f16.
#[test]
fn merged_models_round_trip() {
    for family in [PHI, QWEN2] {
        let folder = tempfile::tempdir().unwrap();
        save::merged(&family.model(), Encoding::F16, u64::MAX, folder.path()).unwrap();
        support::shard(folder.path());
        let model = Imp::load(folder.path()).unwrap();
        check_batch(&model, "merged", &family.batch(), &family.expected("mm_batch"), Side::Right);
        let (ours, theirs) =
            [folder.path().to_path_buf(), family.path("imp")].map(|f| ConfigFile::read(&f).unwrap()).into();
        assert_eq!(ours.model_type(), theirs.model_type());
        assert_eq!(ours.language().unwrap(), theirs.language().unwrap());
        assert_eq!(ours.vision().unwrap(), theirs.vision().unwrap());
    }
}

fn check_batch(model: &Imp, name: &str, batch: &Batch, expected: &Fixture, side: Side) {
    let pass = Pass::inference();
    let features = model.encode_images(&batch.images);
    let images = batch.image_numbers();
    let samples = batch.samples(&images);
    let mut spliced = model.splice(&pass, &samples, &features);
    let padded = spliced.padded(side);
    let close = |tensor: &str, ours: &[f32]| {
        if expected.has(tensor) {
            assert_close(&format!("{name} {tensor}"), ours, &expected.f32(tensor), 1e-4);
        }
    };
    let equal = |tensor: &str, ours: Vec<i32>| {
        if expected.has(tensor) {
            assert_eq!(ours, expected.ids(tensor), "{name} {tensor}");
        }
    };
    close("inputs_embeds", &padded.embedded);
    equal("labels_spliced", padded.labels.clone());
    equal("attention_mask", padded.mask.iter().map(|kept| i32::from(*kept)).collect());
    equal("position_ids", padded.positions.iter().map(|position| *position as i32).collect());
    let (logits, segments) = model.forward(&pass, &samples, &features);
    assert_eq!(segments, spliced.segments);
    spliced.embedded = logits.clone();
    // The fixture's logits are zero in the padding.
    close("logits", &spliced.padded(side).embedded);
    if expected.has("nll_per_target") {
        let nll: Vec<f32> = (0..logits.rows() - 1)
            .map(|row| match spliced.labels[row + 1] {
                IGNORE => 0.0,
                label => {
                    let row = tensor::pick_rows(&pass.graph, &logits, [row]);
                    tensor::cross_entropy(&pass.graph, &row, vec![label as u32], 1).item()
                }
            })
            .collect();
        close("nll_per_target", &nll);
    }
    if expected.has("loss") {
        let count = samples.iter().map(|sample| model.labelled(sample)).sum();
        let loss = model.loss(&pass, &samples, &features, count);
        assert_close(&format!("{name} loss"), &[loss.item()], &expected.f32("loss"), 1e-5);
    }
}

#[test]
fn greedy_tokens() {
    let (model, expected) = (PHI.model(), PHI.expected("generate"));
    let prompt =
        Batch { images: expected.images("pixel_values"), ids: vec![expected.ids("input_ids")], labels: vec![vec![]] };
    let features = model.encode_images(&prompt.images);
    let images = prompt.image_numbers();
    let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
    let tokens: Vec<i32> =
        model.generate(&prompt.samples(&images), &features, &options).unwrap()[0].iter().map(|id| *id as i32).collect();
    assert_eq!(tokens, expected.ids("new_tokens"));

    // A stop token ends the answer and is not part of it.
    let stop = tokens[5] as u32;
    let until = tokens.iter().position(|id| *id as u32 == stop).unwrap();
    let options = GenerateOptions { stop: vec![stop], ..options };
    let stopped = model.generate(&prompt.samples(&images), &features, &options).unwrap();
    assert_eq!(stopped[0].len(), until);
}

/// The reference decodes with a KV cache; the forward pass of the whole sequence must give the same logits.
#[test]
fn greedy_logits_without_a_cache() {
    let (model, expected) = (PHI.model(), PHI.expected("generate"));
    let mut ids = expected.ids("input_ids");
    ids.extend(&expected.ids("new_tokens")[..15]);
    let batch = Batch { images: expected.images("pixel_values"), ids: vec![ids], labels: vec![vec![]] };
    let images = batch.image_numbers();
    let features = model.encode_images(&batch.images);
    let (logits, _) = model.forward(&Pass::inference(), &batch.samples(&images), &features);
    let last = (logits.rows() - 1) * logits.cols();
    assert_close("last_step_logits", &logits.to_host()[last..], &expected.f32("last_step_logits"), 1e-4);
}

#[test]
fn prompts_of_a_batch_are_independent() {
    for family in [PHI, QWEN2] {
        let (model, batch) = (family.model(), family.batch());
        let features = model.encode_images(&batch.images);
        let options = GenerateOptions { max_new_tokens: 12, stop: vec![3, 17], ..GenerateOptions::default() };
        let images = batch.image_numbers();
        let samples = batch.samples(&images);
        let together = model.generate(&samples, &features, &options).unwrap();
        let alone: Vec<_> =
            samples.iter().map(|sample| model.generate(&[*sample], &features, &options).unwrap().remove(0)).collect();
        assert_eq!(together, alone);
    }
}

/// The callback is called for every token of every answer in order, and can end one answer without ending the others.
#[test]
fn answers_are_streamed() {
    let (model, batch) = (PHI.model(), PHI.batch());
    let features = model.encode_images(&batch.images);
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let images = batch.image_numbers();
    let samples = batch.samples(&images);
    let whole = model.generate(&samples, &features, &options).unwrap();
    let mut seen = vec![Vec::new(); samples.len()];
    let answers = model.stream(&samples, &features, &options, |prompt, answer| {
        assert_eq!(answer.len(), seen[prompt].len() + 1);
        seen[prompt] = answer.to_vec();
        if prompt == 1 && answer.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let answers = answers.unwrap();
    assert_eq!(answers, seen);
    assert_eq!(answers, [&whole[0][..], &whole[1][..3], &whole[2][..]]);
}

#[test]
fn gradients_of_the_projector() {
    for family in [PHI, QWEN2] {
        let mut model = family.model();
        model.projector.unfreeze();
        check_gradients(&mut model, family, "stage1_grads");
    }
}

#[test]
fn gradients_of_projector_and_adapters() {
    check_gradients(&mut PHI.model_with_lora(), PHI, "stage2_grads");
}

fn check_gradients(model: &mut Imp, family: Family, name: &str) {
    let (expected, batch) = (family.expected(name), family.batch());
    let (loss, gradients) = loss_and_gradients(model, &batch, &Pass::training(0, 0));
    // Gradient checkpointing recomputes the same bits.
    let checkpointed = Pass::training(0, 0).with_gradient_checkpointing();
    let (recomputed_loss, recomputed) = loss_and_gradients(model, &batch, &checkpointed);
    let values = |mats: &[Mat]| mats.iter().map(|mat| mat.to_host().into_owned()).collect::<Vec<_>>();
    assert_eq!((recomputed_loss, values(&recomputed)), (loss, values(&gradients)));
    assert_close("loss", &[loss], &expected.f32("loss"), 1e-5);
    let mut gradients = gradients.into_iter();
    model.trainable(&mut |Parameter { name, .. }, _| {
        let reference = expected.f32(&format!("grad.{}", support::reference_name(&name)));
        let largest = reference.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_close(&name, &gradients.next().unwrap().to_host(), &reference, 1e-4 * largest);
    });
    assert!(gradients.next().is_none(), "more gradients than trainable matrices");
}

#[test]
fn optimizer_steps() {
    for (family, name, clip, lora) in [
        (PHI, "stage1_steps_noclip", 0.0, false),
        (PHI, "stage1_steps_clip1", 1.0, false),
        (PHI, "stage2_steps_clip1", 1.0, true),
        (QWEN2, "stage1_steps_noclip", 0.0, false),
        (QWEN2, "stage1_steps_clip1", 1.0, false),
    ] {
        let expected = family.expected(name);
        let batches = [family.batch(), Batch::read(&family.expected("train_batches"), "B.", family.pad)];
        let mut model = if lora { family.model_with_lora() } else { family.model() };
        model.projector.unfreeze();
        let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
        let mut optimizer = Optimizer::new(&mut model, settings, clip);
        for step in 0..4 {
            let (loss, gradients) = loss_and_gradients(&mut model, &batches[step % 2], &Pass::training(0, 0));
            assert_close(&format!("{name} loss {step}"), &[loss], &expected.f32("loss_before_step")[step..=step], 1e-5);
            let factor = Schedule::Cosine.factor(step, 1, 5);
            let norm = optimizer.update(&mut model, &gradients, |parameter| Rate {
                learning_rate: factor * if lora && parameter.tower == Tower::Projector { 2e-3 } else { 1e-2 },
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

/// Skips entries whose gradient is less than 1e-5 of the largest, since Adam divides by the gradient's magnitude.
fn check_weights(model: &mut Imp, gradients: &[Mat], expected: &Fixture, step: &str) {
    let mut gradients = gradients.iter();
    model.trainable(&mut |Parameter { name, .. }, mat| {
        let gradient = gradients.next().unwrap().to_host();
        let largest = gradient.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let reference = expected.f32(&format!("{step}.{}", support::reference_name(&name)));
        let ours = mat.to_host();
        assert_eq!((ours.len(), gradient.len()), (reference.len(), reference.len()), "{step} {name}");
        for ((ours, theirs), gradient) in ours.iter().zip(reference).zip(&*gradient) {
            let counts = gradient.abs() >= 1e-5 * largest;
            assert!(!counts || (ours - theirs).abs() <= 1e-4, "{step} {name}: {ours} instead of {theirs}");
        }
    });
    assert!(gradients.next().is_none(), "{step}: more gradients than trainable matrices");
}

#[test]
fn merged_adapters_give_the_same_logits() {
    let (expected, mut adapted) = (PHI.expected("merged"), PHI.model_with_lora());
    let single = Batch::read(&PHI.expected("mm_single"), "", PHI.pad);
    check_batch(&adapted, "adapted", &single, &expected, Side::Right);
    let tensors = adapted.llm.tensors();
    let compared = tensors.iter().filter(|tensor| expected.has(&format!("merged.{}", tensor.name)));
    let mut count = 0;
    for tensor in compared {
        // At this rank, sums have one order: the bits are those of peft's `merge_and_unload`.
        assert!(*tensor.values() == expected.f32(&format!("merged.{}", tensor.name)), "{}", tensor.name);
        count += 1;
    }
    assert!(count > 0, "the fixture has merged weights");
    drop(tensors);
    adapted.llm.fold();
    check_batch(&adapted, "folded", &single, &expected, Side::Right);
}

#[test]
fn the_schedule_equals_that_of_transformers() {
    let text = std::fs::read_to_string(path("cosine_schedule.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(warmup_steps(0.03, 200), 6);
    for (step, factor) in expected["lr_factor_at_step"].as_array().unwrap().iter().enumerate() {
        let ours = Schedule::Cosine.factor(step, 6, 200);
        assert!((ours - factor.as_f64().unwrap()).abs() < 1e-12, "step {step}: {ours}");
    }
}

/// Losses of micro-batches are divided by the number of labelled positions of the whole batch, so they add up to its
/// loss for all lengths. (The reference averages the micro-batches' means instead, which gives short ones more weight.)
#[test]
fn accumulated_micro_batches_equal_the_batch() {
    let (mut model, batch) = (PHI.model_with_lora(), PHI.batch());
    let (loss, whole) = loss_and_gradients(&mut model, &batch, &Pass::training(0, 0));
    let features = model.encode_images(&batch.images);
    let images = batch.image_numbers();
    let samples = batch.samples(&images);
    let count = samples.iter().map(|sample| model.labelled(sample)).sum();
    let mut sum = 0.0;
    let mut gradients: Vec<Mat> = whole.iter().map(|mat| Mat::zeros(mat.rows(), mat.cols())).collect();
    for sample in &samples {
        let pass = Pass::training(0, 0);
        let (loss, parts) = model.loss_and_gradients(&pass, &[*sample], &features, count);
        sum += loss;
        assert_eq!(parts.len(), gradients.len());
        gradients.iter_mut().zip(&parts).for_each(|(to, from)| tensor::accumulate(to, from));
    }
    // The order of the sums differs: a few units in the last place of the largest entry.
    assert_close("loss", &[sum], &[loss], 2e-6);
    for (parts, whole) in gradients.iter().zip(&whole) {
        let (parts, whole) = (parts.to_host(), whole.to_host());
        let largest = whole.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_close("gradient", &parts, &whole, 1e-5 * largest);
    }
}
