//! The same work as benches/peers/model.py, by `imp-model`. Independent of how it is measured.

use std::{io::BufRead, path::Path, time::Instant};

use imp_model::{
    GenerateOptions, IMAGE_TOKEN, Imp, Precision, Sample,
    config::{Family, ImpConfig, LanguageConfig, VisionConfig},
    encoding::Encoding,
    init,
    language::Decoder,
    layers::{LoraSettings, Parameter, Pass},
    load_language,
    optim::{Optimizer, Rate},
    tensor::{Activation, AdamW, Mat, Place, Segments},
};

/// The variants in which we run a case, each with that of the peer.
pub(crate) fn variants(case: &str) -> &'static [(&'static str, &'static str)] {
    match case {
        "block" => &[("block", "block"), ("block-f16", "block"), ("block-bf16", "block-bf16")],
        "nodrop" => &[("nodrop", "nodrop"), ("nodrop-bf16", "nodrop-bf16")],
        "train" => &[("train", "train"), ("train-bf16", "train-bf16")],
        "open" => &[("open", "open")],
        "prefill" => &[("prefill", "prefill"), ("prefill-f16", "prefill"), ("prefill-bf16", "prefill-bf16")],
        _ => &[("decode", "decode"), ("decode-f16", "decode"), ("decode-bf16", "decode-bf16")],
    }
}

/// The precision of products in a variant.
fn place(variant: &str) -> Place {
    Place::host(if variant.ends_with("-bf16") { Precision::Bf16 } else { Precision::F32 })
}

/// Serves repetitions of a case like the peer; see the head of benches/peers/model.py.
pub(crate) fn serve(case: &str, threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    // This thread is one of them, as that of a stage: see `src/pool.rs`.
    let pool = if threads > 1 { pool.use_current_thread() } else { pool };
    pool.build_global().unwrap();
    let folder = std::path::PathBuf::from("target/bench-models").join(case);
    let (llm, vision) = (folder.join("llm"), folder.join("vision"));
    for folder in [&llm, &vision] {
        std::fs::create_dir_all(folder).unwrap();
    }
    // Files are written in a separate process, so that writing does not count towards the peak memory.
    if !llm.join("done").exists() {
        write(case, &llm, &vision);
        std::fs::write(llm.join("done"), "").unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["worker", case, &threads.to_string()])
            .status();
        std::process::exit(status.unwrap().code().unwrap_or(1));
    }
    let empty = peak_memory();
    let mut run: Box<dyn FnMut()> = match case {
        _ if case.starts_with("block") => block(&llm, 0.05, &place(case)),
        _ if case.starts_with("nodrop") => block(&llm, 0.0, &place(case)),
        "train" | "train-bf16" => train(&llm, &vision, &place(case)),
        "open" => Box::new(move || assert_eq!(load_language(&llm).unwrap().config.num_hidden_layers, 32)),
        _ if case.starts_with("prefill") => generate(&llm, &vision, &place(case), 512, 1),
        _ => generate(&llm, &vision, &place(case), 64, 128),
    };
    run();
    println!("ready");
    for _ in std::io::stdin().lock().lines() {
        let began = Instant::now();
        run();
        println!("{}", began.elapsed().as_secs_f64() * 1e3);
    }
    println!("{}", peak_memory() - empty);
}

/// Peak memory of the process in MB.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn write(case: &str, llm: &Path, vision: &Path) {
    let language = match case {
        _ if ["block", "nodrop"].iter().any(|name| case.starts_with(name)) => LanguageConfig::phi(64, 2560, 1, 32, 32),
        "train" | "train-bf16" => LanguageConfig::phi(32000, 512, 8, 8, 32),
        "open" => LanguageConfig::phi(51200, 2560, 32, 32, 32),
        _ => LanguageConfig {
            family: Family::Llama,
            intermediate_size: 1536,
            num_key_value_heads: 3,
            hidden_act: Activation::Silu,
            tie_word_embeddings: true,
            ..LanguageConfig::phi(49152, 576, 30, 9, 64)
        },
    };
    let dtype = match case.rsplit_once('-') {
        Some((_, "bf16")) if case != "train-bf16" => Encoding::Bf16,
        Some((_, "f16")) => Encoding::F16,
        _ if case == "open" => Encoding::F16,
        _ => Encoding::F32,
    };
    init::write_language(llm, &language, 1, dtype).unwrap();
    let siglip = VisionConfig {
        hidden_size: 256,
        intermediate_size: 1024,
        num_hidden_layers: 5,
        num_attention_heads: 4,
        image_size: 224,
        patch_size: 16,
        ..VisionConfig::so400m_patch14_384()
    };
    init::write_vision(vision, &siglip, 1).unwrap();
}

fn random(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i as f64 * 12.9898).sin() * 43_758.545_3).fract() as f32).collect()
}

fn block(llm: &Path, dropout: f64, place: &Place) -> Box<dyn FnMut()> {
    let mut llm: Decoder = load_language(llm).unwrap();
    llm.adapt(&LoraSettings::new(256, 256.0, dropout), &[], 1).unwrap();
    llm.move_to(place);
    let x = Mat::from_host(512, 2560, random(512 * 2560)).trainable();
    let segments = Segments::new([512]);
    let mut seed = 0;
    Box::new(move || {
        seed += 1;
        let pass = Pass::training(seed, 0).on_rows(segments.sequence_positions());
        let y = llm.forward(&pass, &x, &segments);
        let mut gradients = pass.graph.backward(&y);
        let mut count = gradients.take(&x).count();
        llm.trainable(&mut |_, mat| count += gradients.take(mat).count());
        assert!(count > 0);
    })
}

fn train(llm: &Path, vision: &Path, place: &Place) -> Box<dyn FnMut()> {
    let mut model = Imp::assemble(llm, vision, ImpConfig::default(), 1).unwrap();
    model.move_to(place);
    model.llm.unfreeze();
    model.projector.unfreeze();
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let mut optimizer = Optimizer::new(&mut model, settings, 1.0);
    let images: Vec<Vec<f32>> = (0..4).map(|_| random(3 * 224 * 224)).collect();
    let mut ids: Vec<i32> = (0..65).map(|i| i * 487 % 32_000).collect();
    ids[0] = IMAGE_TOKEN;
    let labels: Vec<i32> = ids.iter().enumerate().map(|(i, id)| if i > 32 { *id } else { -100 }).collect();
    let mut seed = 0;
    Box::new(move || {
        seed += 1;
        let features = model.encode_images(&images);
        let numbers = [[0], [1], [2], [3]];
        let samples: Vec<Sample<'_>> =
            numbers.iter().map(|images| Sample { input_ids: &ids, labels: &labels, images }).collect();
        let rate = |_: &Parameter| Rate { learning_rate: 1e-4, weight_decay: 0.0 };
        let count = samples.iter().map(|sample| model.labelled(sample)).sum();
        let (loss, gradients) = model.loss_and_gradients(&Pass::training(seed, 0), &samples, &features, count);
        let norm = optimizer.update(&mut model, &gradients, rate);
        assert!(loss.is_finite() && norm.is_finite());
    })
}

/// Reads a prompt and makes `new` tokens.
fn generate(llm: &Path, vision: &Path, place: &Place, prompt: i32, new: usize) -> Box<dyn FnMut()> {
    let mut model = Imp::assemble(llm, vision, ImpConfig::default(), 1).unwrap();
    model.move_to(place);
    let ids: Vec<i32> = (0..prompt).map(|i| i * 487 % 49_152).collect();
    Box::new(move || {
        let prompt = Sample { input_ids: &ids, labels: &[], images: &[] };
        let options = GenerateOptions { max_new_tokens: new, ..GenerateOptions::default() };
        let answers = model.generate(&[prompt], &Mat::zeros(0, 256), &options).unwrap();
        assert_eq!(answers[0].len(), new);
    })
}
