//! Measures a training step and generation of the tiny model, at random weights:
//! `cargo run --release -p imp-model --example step [full|lora|projector|generate]`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::time::Instant;

use imp_model::{
    GenerateOptions, IMAGE_TOKEN, Imp, Sample,
    config::{ImpConfig, PhiConfig, SiglipConfig},
    init,
    layers::{LoraSettings, Pass},
    optim::{Optimizer, Rate},
    tensor::{Activation, AdamW},
};

const BATCH: usize = 16;
const TEXT: usize = 134;

fn model(folder: &std::path::Path) -> Imp {
    let (llm, vision) = (folder.join("llm"), folder.join("vision"));
    for folder in [&llm, &vision] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let phi = PhiConfig {
        vocab_size: 576,
        hidden_size: 128,
        intermediate_size: 512,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        partial_rotary_factor: 0.5,
        rope_theta: 1e4,
        layer_norm_eps: 1e-5,
        max_position_embeddings: 2048,
        hidden_act: Activation::GeluTanh,
        eos_token_id: 1,
    };
    let siglip = SiglipConfig {
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        image_size: 64,
        patch_size: 16,
        layer_norm_eps: 1e-6,
        hidden_act: Activation::GeluTanh,
    };
    init::write_phi(&llm, &phi, 1).unwrap();
    init::write_siglip(&vision, &siglip, 1).unwrap();
    Imp::assemble(&llm, &vision, ImpConfig::default(), 1).unwrap()
}

fn main() {
    let mode = std::env::args().nth(1).unwrap_or_else(|| "full".into());
    let folder = std::env::temp_dir().join("imp-step");
    let mut model = model(&folder);
    let images: Vec<Vec<f32>> =
        (0..BATCH).map(|n| (0..3 * 64 * 64).map(|i| ((i + n) as f32 * 0.1).sin()).collect()).collect();
    let began = Instant::now();
    let features = model.encode_images(&images);
    println!("encoding {BATCH} images: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    let mut ids: Vec<i32> = (0..TEXT as i32).map(|i| i * 37 % 570).collect();
    ids[5] = IMAGE_TOKEN;
    let labels: Vec<i32> =
        ids.iter().enumerate().map(|(i, id)| if i > 40 && i % 3 == 0 { *id } else { -100 }).collect();
    let numbers: Vec<[usize; 1]> = (0..BATCH).map(|n| [n]).collect();
    let samples: Vec<Sample<'_>> =
        numbers.iter().map(|images| Sample { input_ids: &ids, labels: &labels, images }).collect();
    if mode == "generate" {
        return generate(&model, &samples, &features);
    }
    model.projector.unfreeze();
    match mode.as_str() {
        "full" => model.llm.unfreeze(),
        "lora" => model.llm.adapt(&LoraSettings { rank: 8, alpha: 16.0, dropout: 0.05 }, 1),
        _ => {}
    }
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(&mut model, settings, 1.0);
    let count = samples.iter().map(|sample| model.labelled(sample)).sum();
    let mut times: Vec<[f64; 3]> = Vec::new();
    for _ in 0..40 {
        let began = Instant::now();
        let pass = Pass::training(0, 0);
        let loss = model.loss(&pass, &samples, &features, count);
        let forward = began.elapsed().as_secs_f64();
        let gradients = model.gradients(&mut pass.graph.backward(&loss));
        let backward = began.elapsed().as_secs_f64() - forward;
        optimizer.update(&mut model, &gradients, |_| Rate { learning_rate: 1e-3, weight_decay: 0.0 });
        let update = began.elapsed().as_secs_f64() - forward - backward;
        times.push([forward, backward, update]);
    }
    // The fastest: what else the machine does only adds to the others.
    let fastest = |part: usize| times.iter().map(|time| time[part]).fold(f64::INFINITY, f64::min);
    let [forward, backward, update] = [fastest(0), fastest(1), fastest(2)].map(|seconds| seconds * 1e3);
    let tokens = (BATCH * (TEXT + 15)) as f64;
    let speed = tokens / (forward + backward + update);
    println!("{mode}: forward {forward:.1} ms, backward {backward:.1} ms, update {update:.1} ms: {speed:.1}k tokens/s");
}

fn generate(model: &Imp, samples: &[Sample<'_>], features: &imp_model::tensor::Mat) {
    let options = |max_new_tokens| GenerateOptions { max_new_tokens, stop: vec![] };
    for new in [1, 33] {
        let began = Instant::now();
        model.generate(samples, features, &options(new));
        println!("{new} tokens for {} prompts: {:.1} ms", samples.len(), began.elapsed().as_secs_f64() * 1e3);
    }
}
