//! Our side of the comparison with PyTorch: the same work as `benches/peers/gpu.py`, by `imp-model` on the card in bf16.
//! Independent of how it is measured.

use imp_model::{
    GenerateOptions, IMAGE_TOKEN, Imp, Precision, Sample,
    config::{ImpConfig, ProjectorType},
    layers::{LoraSettings, Parameter, Pass},
    load_vision,
    memory::{MicroBatch, Training, Trains},
    optim::{Optimizer, Rate},
    tensor::{self, AdamW, Device, Graph, Mat, Place},
};

use crate::{files, sizes::Sizes, sizes::TARGETS};

pub(crate) const CASES: [&str; 4] = ["lora", "features", "decode", "prefill"];

/// Work that is repeated. What it computes is done when it returns.
pub(crate) struct Case {
    pub(crate) run: Box<dyn FnMut()>,
    pub(crate) device: Device,
}

/// What a repetition of a case amounts to, on both sides.
pub(crate) struct Amount {
    /// Examples, images or tokens.
    pub(crate) count: usize,
    pub(crate) unit: &'static str,
    /// Operations of products with weights that the result needs: without attention scores, and without what checkpointing
    /// computes twice. `None` where memory and not arithmetic is the limit.
    pub(crate) operations: Option<f64>,
}

pub(crate) fn amount(case: &str, sizes: &Sizes) -> Amount {
    let patches = sizes.vision.patches();
    let blocks = |rows: usize, learned: usize, trains: Trains<'_>| {
        let training = Training {
            llm: &sizes.language,
            vision: &sizes.vision,
            projector: ProjectorType::Mlp(2),
            trains,
            vision_layers: 0,
            gradient_checkpointing: false,
        };
        training.operations(MicroBatch { rows, learned, images: 0 }, 0)
    };
    match case {
        "lora" => {
            let targets = TARGETS.map(String::from);
            let trains = Trains::Adapters { rank: sizes.rank, dropout: true, dora: false, targets: &targets };
            let rows = sizes.sequences * (patches + sizes.text);
            let operations = blocks(rows, sizes.sequences * labelled(sizes), trains);
            Amount { count: sizes.sequences, unit: "examples", operations: Some(operations) }
        }
        "features" => {
            let (width, inner) = (sizes.vision.hidden_size, sizes.vision.intermediate_size);
            // The features are the input of the last block.
            let weights = (sizes.vision.num_hidden_layers - 1) * (4 * width * width + 2 * width * inner)
                + 3 * sizes.vision.patch_size.pow(2) * width;
            let operations = 2.0 * weights as f64 * (patches * sizes.images) as f64;
            Amount { count: sizes.images, unit: "images", operations: Some(operations) }
        }
        "decode" => Amount { count: sizes.prompts * sizes.answer, unit: "tokens", operations: None },
        "prefill" => {
            // Half of what a frozen model takes forward and backward.
            let operations = blocks(sizes.prompts * (patches + sizes.question), sizes.prompts, Trains::Projector) / 2.0;
            Amount { count: sizes.prompts, unit: "prompts", operations: Some(operations) }
        }
        _ => panic!("the cases are {}", CASES.join(", ")),
    }
}

pub(crate) fn case(name: &str, sizes: &Sizes) -> Case {
    files::write(sizes);
    let device = crate::card();
    let place = Place::device(device.clone(), Precision::Bf16);
    let run = match name {
        "lora" => lora(sizes, &place),
        "features" => features(sizes, &place),
        "decode" => answers(sizes, &place, sizes.answer),
        "prefill" => answers(sizes, &place, 1),
        _ => panic!("the cases are {}", CASES.join(", ")),
    };
    Case { run, device }
}

/// Labelled tokens of a sequence.
fn labelled(sizes: &Sizes) -> usize {
    sizes.text / 2
}

/// A complete step of LoRA finetuning with checkpointing, on features that are there.
fn lora(sizes: &Sizes, place: &Place) -> Box<dyn FnMut()> {
    let mut model = assembled(sizes);
    let settings = LoraSettings::new(sizes.rank, sizes.rank as f64, 0.05);
    model.llm.adapt(&settings, &TARGETS.map(String::from), 1).unwrap();
    model.projector.unfreeze();
    model.move_to(place);
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let mut optimizer = Optimizer::new(&mut model, settings, 1.0);
    let features = encoded(&model, sizes, sizes.sequences);
    let unlabelled = sizes.text - labelled(sizes);
    let ids: Vec<Vec<i32>> = (0..sizes.sequences).map(|number| prompt(sizes, number, sizes.text)).collect();
    let labels: Vec<Vec<i32>> = ids
        .iter()
        .map(|ids| ids.iter().enumerate().map(|(at, id)| if at > unlabelled { *id } else { -100 }).collect())
        .collect();
    let images: Vec<[usize; 1]> = (0..sizes.sequences).map(|number| [number]).collect();
    let mut seed = 0;
    Box::new(move || {
        seed += 1;
        let samples: Vec<Sample<'_>> = ids
            .iter()
            .zip(&labels)
            .zip(&images)
            .map(|((input_ids, labels), images)| Sample { input_ids, labels, images })
            .collect();
        let count = samples.iter().map(|sample| model.labelled(sample)).sum();
        let pass = Pass::training(seed, 0).with_gradient_checkpointing();
        let loss = model.loss(&pass, &samples, &features, count);
        let gradients = model.gradients(&mut pass.graph.backward(&loss));
        let rate = |_: &Parameter| Rate { learning_rate: 1e-4, weight_decay: 0.0 };
        let (loss, norm) = optimizer.update_and_read(&mut model, &gradients, &loss, rate);
        assert!(loss.is_finite() && norm.is_finite(), "loss {loss}, norm {norm}");
        let mut last = None;
        model.trainable(&mut |_, mat| last = Some(mat.clone()));
        wait(&last.unwrap());
    })
}

/// Features of images whose pixels lie in host memory.
fn features(sizes: &Sizes, place: &Place) -> Box<dyn FnMut()> {
    let mut vision = load_vision(&sizes.models().join("vision"), &ImpConfig::default()).unwrap();
    vision.move_to(place);
    let images = pixels(sizes, sizes.images);
    Box::new(move || wait(&vision.encode(&images)))
}

/// Greedy answers of a fixed length to prompts with an image each. Random weights never end an answer.
fn answers(sizes: &Sizes, place: &Place, length: usize) -> Box<dyn FnMut()> {
    let mut model = assembled(sizes);
    model.move_to(place);
    let features = encoded(&model, sizes, sizes.prompts);
    let ids: Vec<Vec<i32>> = (0..sizes.prompts).map(|number| prompt(sizes, number, sizes.question)).collect();
    let images: Vec<[usize; 1]> = (0..sizes.prompts).map(|number| [number]).collect();
    let options = GenerateOptions { max_new_tokens: length, ..GenerateOptions::default() };
    Box::new(move || {
        let prompts: Vec<Sample<'_>> =
            ids.iter().zip(&images).map(|(input_ids, images)| Sample { input_ids, labels: &[], images }).collect();
        let answers = model.generate(&prompts, &features, &options).unwrap();
        assert!(answers.iter().all(|answer| answer.len() == length));
    })
}

fn assembled(sizes: &Sizes) -> Imp {
    let models = sizes.models();
    Imp::assemble(&models.join("llm"), &models.join("vision-short"), ImpConfig::default(), 1).unwrap()
}

/// Features on the card.
fn encoded(model: &Imp, sizes: &Sizes, images: usize) -> Mat {
    model.encode_images(&pixels(sizes, images))
}

/// An image and `text` tokens, different ones in each prompt: common beginnings would be computed once.
fn prompt(sizes: &Sizes, number: usize, text: usize) -> Vec<i32> {
    let vocab = sizes.language.vocab_size;
    let tokens = (0..text).map(|at| ((at * 487 + number * 7919) % vocab) as i32);
    [IMAGE_TOKEN].into_iter().chain(tokens).collect()
}

fn pixels(sizes: &Sizes, images: usize) -> Vec<Vec<f32>> {
    let count = 3 * sizes.vision.image_size.pow(2);
    (0..images).map(|image| random(image as u64, count)).collect()
}

/// Pseudorandom values in -1..1.
pub(crate) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Waits until a matrix is computed.
pub(crate) fn wait(mat: &Mat) {
    assert!(tensor::pick_rows(&Graph::inference(), mat, [0]).to_host()[0].is_finite());
}
