//! Ways of finetuning against peft's and transformers' own steps, which `benches/peers/tune.py` has written to
//! `tests/fixtures/tune`. Tolerances as in the fixtures' README: 1e-5 for losses, 1e-4 of the largest entry for gradients, 1e-4 for
//! weights after steps and for logits.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use imp_model::{
    Imp, Precision, Sample,
    layers::{LoraSettings, Parameter, Pass, Role},
    optim::{Optimizer, Rate},
    peft,
    tensor::{AdamW, Mat, Weight},
};
use support::{Batch, Fixture, PHI, assert_close, loss_and_gradients, path};

/// The tiny Phi with an adapter as peft saved it, which trains.
fn adapted(name: &str) -> (Imp, LoraSettings) {
    let mut model = PHI.model();
    let settings = peft::read(&mut model.llm, None, &path(&format!("tune/{name}"))).unwrap();
    for lora in model.llm.linears_mut().filter_map(|linear| linear.lora.as_mut()) {
        lora.a = lora.a.clone().trainable();
        lora.b = lora.b.clone().trainable();
        if let Some(magnitude) = &mut lora.magnitude {
            magnitude.vector = magnitude.vector.clone().trainable();
        }
    }
    (model, settings)
}

fn check_gradients(model: &mut Imp, gradients: &[Mat], expected: &Fixture) {
    check_within(model, gradients, expected, 1e-4);
}

/// The tolerance is a share of the largest entry.
fn check_within(model: &mut Imp, gradients: &[Mat], expected: &Fixture, share: f32) {
    let mut gradients = gradients.iter();
    model.trainable(&mut |Parameter { name, .. }, _| {
        let reference = expected.f32(&format!("grad.{name}"));
        let largest = reference.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_close(&name, &gradients.next().unwrap().to_host(), &reference, share * largest);
    });
    assert!(gradients.next().is_none(), "more gradients than trainable matrices");
}

/// Two steps of AdamW on one batch, as in the script; the matrices B and the magnitudes learn `ratio` times as fast.
fn check_steps(name: &str, ratio: f64) -> Imp {
    let (mut model, _) = adapted(name);
    let (expected, batch) = (Fixture::open(&format!("tune/{name}/expected.safetensors")), PHI.batch());
    let mut optimizer = Optimizer::new(&mut model, AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }, 0.0);
    let losses = expected.f32("loss");
    for (step, theirs) in losses.iter().enumerate() {
        let (loss, gradients) = loss_and_gradients(&mut model, &batch, &Pass::training(0, 0));
        assert_close(&format!("{name} loss {step}"), &[loss], &[*theirs], 1e-5);
        let checkpointed = Pass::training(0, 0).with_gradient_checkpointing();
        assert_eq!(loss_and_gradients(&mut model, &batch, &checkpointed).0.to_bits(), loss.to_bits());
        if step == 0 {
            check_gradients(&mut model, &gradients, &expected);
        }
        optimizer.update(&mut model, &gradients, |parameter| Rate {
            learning_rate: 1e-2 * if matches!(parameter.role, Role::LoraB | Role::Magnitude) { ratio } else { 1.0 },
            weight_decay: if parameter.decays() { 0.1 } else { 0.0 },
        });
    }
    model.trainable(&mut |Parameter { name, .. }, mat| {
        assert_close(&name, &mat.to_host(), &expected.f32(&format!("after.{name}")), 1e-4);
    });
    model
}

#[test]
fn rank_stabilized_adapters_step_as_in_peft() {
    check_steps("rslora", 1.0);
    let (model, settings) = adapted("rslora");
    assert_eq!(settings, LoraSettings { rslora: true, ..LoraSettings::new(3, 8.0, 0.0) });
    let lora = model.llm.linears().find_map(|linear| linear.lora.as_ref()).unwrap();
    assert!((f64::from(lora.scale) - 8.0 / 3.0_f64.sqrt()).abs() < 1e-6);
}

/// Its adapter also has the output layer as a whole, which peft saves if it is adapted.
#[test]
fn matrices_b_with_a_rate_of_their_own_step_as_in_peft() {
    check_steps("loraplus", 4.0);
}

#[test]
fn magnitudes_step_as_in_peft() {
    let model = check_steps("dora", 4.0);
    let expected = Fixture::open("tune/dora/expected.safetensors");
    let batch = PHI.batch();
    let (features, images) = (model.encode_images(&batch.images), batch.image_numbers());
    let logits = |model: &Imp| {
        let (logits, _) = model.forward(&Pass::inference(), &batch.samples(&images)[..1], &features);
        logits.to_host()[..4 * logits.cols()].to_vec()
    };
    // Of a model that was trained, read from its adapter, merged and folded.
    assert_close("trained", &logits(&model), &expected.f32("adapted_logits"), 1e-4);
    let folder = tempfile::tempdir().unwrap();
    let settings = LoraSettings { dora: true, ..LoraSettings::new(3, 8.0, 0.0) };
    peft::write(&model.llm, &settings, "", folder.path()).unwrap();
    let mut read = PHI.model();
    assert_eq!(peft::read(&mut read.llm, None, folder.path()).unwrap(), settings);
    assert_close("read", &logits(&read), &logits(&model), 1e-5);
    for linear in read.llm.linears().filter(|linear| linear.name.starts_with("model.layers.0.self_attn.q_proj")) {
        // Peft's own merge, whose norms are summed in another order: a relative 1e-6.
        assert_close("merged", &linear.merged(), &expected.f32(&format!("merged.{}", linear.name)), 1e-6);
        assert_close("some rows", &linear.merged_rows(7..9), &linear.merged()[7 * 60..9 * 60], 1e-6);
    }
    read.llm.fold();
    assert!(read.llm.linears().all(|linear| linear.lora.is_none()));
    assert_close("folded", &logits(&read), &expected.f32("adapted_logits"), 1e-4);
}

/// The first step, and answers after all of them, wherever they are computed. Tolerances of bf16 are those of `places/`.
#[test]
fn magnitudes_are_the_same_everywhere() {
    let expected = Fixture::open("tune/dora/expected.safetensors");
    for (name, place) in support::places() {
        let (mut model, _) = adapted("dora");
        model.move_to(&place);
        let exact = place.precision == Precision::F32;
        let (loss, gradients) = loss_and_gradients(&mut model, &PHI.batch(), &Pass::training(0, 0));
        let theirs = expected.f32("loss")[0];
        assert_close(&name, &[loss], &[theirs], if exact { 1e-5 } else { 0.01 * theirs });
        check_within(&mut model, &gradients, &expected, if exact { 1e-4 } else { 0.13 });
        model.llm.fold();
        assert!(model.llm.linears().all(|linear| linear.lora.is_none()));
        let folded = loss_and_gradients(&mut model, &PHI.batch(), &Pass::training(0, 0)).0;
        assert_close(&format!("{name} folded"), &[folded], &[theirs], if exact { 1e-5 } else { 0.01 * theirs });
    }
}

/// Before any training nothing changes, with dropout nothing on average, and what is dropped still goes through the weight.
#[test]
fn new_magnitudes_change_nothing() {
    let batch = PHI.batch();
    let (plain, _) = loss_and_gradients(&mut PHI.model(), &batch, &Pass::training(0, 0));
    for dropout in [0.0, 0.5] {
        let mut model = PHI.model();
        let settings = LoraSettings { dora: true, ..LoraSettings::new(3, 8.0, dropout) };
        model.llm.adapt(&settings, &[], 1).unwrap();
        let (loss, _) = loss_and_gradients(&mut model, &batch, &Pass::training(3, 0));
        assert_close(&format!("dropout {dropout}"), &[loss], &[plain], 1e-5);
    }
}

/// The padding of a vocabulary may be rows of zeros, which have no direction: they stay zeros.
#[test]
fn rows_of_zeros_stay_zeros() {
    for (name, place) in support::places() {
        let mut model = PHI.model();
        let head = model.llm.linears_mut().last().unwrap();
        let (outputs, inputs) = (head.weight.outputs(), head.weight.inputs());
        let mut values = head.weight.to_host().into_owned();
        values[..2 * inputs].fill(0.0);
        head.weight = Weight::Dense(Mat::from_host(outputs, inputs, values));
        head.adapt(&LoraSettings { dora: true, ..LoraSettings::new(3, 8.0, 0.0) }, 1);
        model.move_to(&place);
        let (loss, gradients) = loss_and_gradients(&mut model, &PHI.batch(), &Pass::training(0, 0));
        let all = gradients.iter().flat_map(|gradient| gradient.to_host().into_owned());
        assert!(loss.is_finite() && all.into_iter().all(f32::is_finite), "{name}");
        let head = model.llm.linears().last().unwrap();
        assert!(head.merged_rows(0..2).iter().all(|value| *value == 0.0), "{name}");
    }
}

/// With dropout: the gradient is that of the formula, by differences of the loss. Norms are constant in it, so they are left as
/// they are by moving only the magnitudes, and the input of the first layer moves nothing.
#[test]
fn the_gradient_of_magnitudes_with_dropout() {
    let mut model = PHI.model();
    let settings = LoraSettings { dora: true, ..LoraSettings::new(3, 8.0, 0.3) };
    model.llm.adapt(&settings, &["v_proj".into(), "lm_head".into()], 1).unwrap();
    model.trainable(&mut |parameter, mat| {
        if parameter.role == Role::LoraB {
            let values = support::random(5, mat.count()).iter().map(|value| 0.1 * value).collect::<Vec<_>>();
            mat.copy_from(&values);
        }
    });
    let (batch, pass) = (PHI.batch(), || Pass::training(3, 0));
    let (_, gradients) = loss_and_gradients(&mut model, &batch, &pass());
    let mut move_by = |distance: f32| {
        let mut seed = 0;
        model.trainable(&mut |parameter, mat| {
            if parameter.role == Role::Magnitude {
                seed += 1;
                let direction = support::random(seed, mat.count());
                let moved: Vec<f32> = mat.to_host().iter().zip(direction).map(|(m, d)| m + distance * d).collect();
                mat.copy_from(&moved);
            }
        });
        f64::from(loss_and_gradients(&mut model, &batch, &pass()).0)
    };
    let (up, down) = (move_by(0.01), move_by(-0.02));
    move_by(0.01);
    let (mut seed, mut ours, mut all) = (0, 0.0, gradients.iter());
    model.trainable(&mut |parameter, mat| {
        let gradient = all.next().unwrap().to_host();
        if parameter.role == Role::Magnitude {
            seed += 1;
            let direction = support::random(seed, mat.count());
            ours += gradient.iter().zip(direction).map(|(g, d)| f64::from(g * d)).sum::<f64>();
        }
    });
    let differences = (up - down) / 0.02;
    assert!((ours - differences).abs() < 2e-3 * ours.abs().max(1.0), "{ours} instead of {differences}");
}

/// Transformers' hook and step, with our numbers.
#[test]
fn noise_on_embeddings_is_that_of_transformers() {
    let expected = Fixture::open("tune/neftune.safetensors");
    let batch = Batch::read(&PHI.expected("mm_single"), "", PHI.pad);
    let (mut model, _) = adapted("rslora");
    let alpha = f64::from(expected.f32("alpha")[0]);
    let pass = Pass::training(11, 0).with_noise(alpha);
    let (features, images) = (model.encode_images(&batch.images), batch.image_numbers());
    let samples = batch.samples(&images);
    let embedded = |pass: &Pass, samples: &[Sample<'_>]| model.splice(pass, samples, &features).embedded;
    let noisy = embedded(&pass, &samples);
    assert_close("embedded", &noisy.to_host(), &expected.f32("embedded"), 1e-4);
    // The other passes: another step, and none at inference or without alpha.
    let other = embedded(&Pass::training(12, 0).with_noise(alpha), &samples);
    assert_ne!(other.to_host(), noisy.to_host());
    let clean = embedded(&Pass::training(11, 0), &samples);
    assert_eq!(embedded(&Pass::inference().with_noise(alpha), &samples).to_host(), clean.to_host());
    let bound = (alpha / ((noisy.rows() * noisy.cols()) as f64).sqrt()) as f32;
    let largest = noisy.to_host().iter().zip(&*clean.to_host()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest <= bound + 1e-6 && largest > 0.98 * bound, "{largest} of {bound}");
    // As one of two micro-batches, a sample has the noise that it has in the whole batch.
    let both = embedded(&pass, &[samples[0], samples[0]]);
    let second = embedded(&Pass::training(11, 1).with_noise(alpha), &samples);
    assert_eq!(both.to_host()[noisy.count()..], *second.to_host());
    assert_ne!(second.to_host(), noisy.to_host());

    for (name, place) in support::places().into_iter().filter(|(_, place)| place.precision == Precision::F32) {
        model.move_to(&place);
        let (loss, gradients) = loss_and_gradients(&mut model, &batch, &Pass::training(11, 0).with_noise(alpha));
        assert_close(&name, &[loss], &expected.f32("loss"), 1e-5);
        check_gradients(&mut model, &gradients, &expected);
    }
}
