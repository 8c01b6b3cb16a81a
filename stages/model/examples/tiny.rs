//! Trains a tiny Imp with random weights to tell a dark image from a bright one, writes it, loads it and asks it:
//! `cargo run --release -p imp-model --example tiny`.
#![allow(clippy::print_stdout)]

use std::ops::ControlFlow;

use imp_model::{
    GenerateOptions, IMAGE_TOKEN, Imp, Sample,
    config::{ImpConfig, LanguageConfig, VisionConfig},
    encoding::Encoding,
    init,
    layers::{Parameter, Pass},
    optim::{Optimizer, Rate},
    save,
    tensor::AdamW,
};

const SIZE: usize = 32;
/// "is it bright?", then "yes" and "no", in a vocabulary of 16.
const QUESTION: i32 = 3;
const ANSWERS: [i32; 2] = [5, 7];
const END: i32 = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("imp-example");
    let [llm, vision, merged] = ["llm", "vision", "merged"].map(|name| folder.join(name));
    for folder in [&llm, &vision, &merged] {
        std::fs::create_dir_all(folder).map_err(imp_model::ModelError::io(folder))?;
    }
    // Any Hugging Face folders of a Phi-2, Qwen2, Llama or Phi-3 and of a SigLIP can be used instead.
    init::write_language(&llm, &LanguageConfig::phi(16, 32, 2, 4, 4), 1, Encoding::F32)?;
    let sizes = VisionConfig {
        hidden_size: 24,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: SIZE,
        patch_size: 8,
        ..VisionConfig::so400m_patch14_384()
    };
    init::write_vision(&vision, &sizes, 1)?;
    let mut model = Imp::assemble(&llm, &vision, ImpConfig::default(), 1)?;

    // Two images [3, size, size] with values in [-1, 1], encoded only once because the encoder is frozen.
    let images = [0.8, -0.8].map(|shade| vec![shade; 3 * SIZE * SIZE]);
    let features = model.encode_images(&images); // [2 * patches, vision hidden]
    let records = ANSWERS.map(|answer| [IMAGE_TOKEN, QUESTION, answer, END]);
    let labels = ANSWERS.map(|answer| [-100, -100, answer, END]);
    let samples: Vec<Sample<'_>> = (0..2)
        .map(|image| Sample { input_ids: &records[image], labels: &labels[image], images: &[[0], [1]][image] })
        .collect();

    model.llm.unfreeze();
    model.projector.unfreeze();
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let mut optimizer = Optimizer::new(&mut model, settings, 1.0);
    for step in 0..60 {
        let rate = |_: &Parameter| Rate { learning_rate: 3e-3, weight_decay: 0.0 };
        let count = samples.iter().map(|sample| model.labelled(sample)).sum();
        let (loss, gradients) = model.loss_and_gradients(&Pass::training(step, 0), &samples, &features, count);
        let norm = optimizer.update(&mut model, &gradients, rate);
        if step % 20 == 0 {
            println!("step {step}: loss {loss:.3}, gradient norm {norm:.2}");
        }
    }

    save::merged(&model, Encoding::F16, u64::MAX, &merged)?;
    let model = Imp::load(&merged)?;
    let prompts: Vec<Sample<'_>> =
        samples.iter().map(|sample| Sample { input_ids: &sample.input_ids[..2], labels: &[], ..*sample }).collect();
    let options = GenerateOptions { max_new_tokens: 4, stop: vec![END as u32], ..GenerateOptions::default() };
    let answers = model.stream(&prompts, &features, &options, |prompt, answer| {
        println!("image {prompt}: {answer:?}");
        ControlFlow::Continue(())
    })?;
    assert_eq!(answers, ANSWERS.map(|answer| vec![answer as u32]), "the model tells both images apart");
    Ok(())
}
