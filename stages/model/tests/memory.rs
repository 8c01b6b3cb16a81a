//! The memory forecast of `imp_model::memory` against the allocator's peak during a training step.
#![allow(clippy::unwrap_used, missing_docs, unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use imp_model::{
    IMAGE_TOKEN, Imp, Sample,
    config::{Family, ImpConfig, LanguageConfig, ProjectorType, VisionConfig},
    encoding::Encoding,
    init,
    layers::{LoraSettings, Pass},
    memory::{MicroBatch, Training, Trains},
    optim::{Optimizer, Rate},
    tensor::{Activation, AdamW, Graph, Mat, Place, Weight, accumulate, linear},
};

/// Counts the bytes in use and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system allocator, and only counts bytes.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IMAGES: usize = 2;
const TEXT: usize = 150;
const LEARNED: usize = 40;

fn language(family: Family) -> LanguageConfig {
    let phi = LanguageConfig::phi(500, 96, 5, 6, 16);
    if family == Family::Phi {
        return phi;
    }
    LanguageConfig {
        family,
        intermediate_size: 256,
        num_key_value_heads: 3,
        hidden_act: Activation::Silu,
        tie_word_embeddings: family == Family::Llama,
        ..phi
    }
}

fn vision() -> VisionConfig {
    VisionConfig {
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        image_size: 80,
        patch_size: 8,
        ..VisionConfig::so400m_patch14_384()
    }
}

/// Peak bytes in use during a step of two micro-batches, including the trainable parameters.
fn measured(folder: &Path, training: &Training<'_>) -> usize {
    measured_at(folder, training, &Place::default())
}

/// The same at a place. On a device without what was in use before the step: the frozen weights.
fn measured_at(folder: &Path, training: &Training<'_>, place: &Place) -> usize {
    let before = LIVE.load(Relaxed);
    let joined = ImpConfig { mm_projector_type: training.projector, ..ImpConfig::default() };
    let mut model = Imp::assemble(&folder.join("llm"), &folder.join("vision"), joined, 1).unwrap();
    match training.trains {
        Trains::Projector => {}
        Trains::Adapters { rank, dropout, dora, targets } => {
            let settings = LoraSettings { dora, ..LoraSettings::new(rank, 8.0, if dropout { 0.1 } else { 0.0 }) };
            model.llm.adapt(&settings, targets, 1).unwrap();
        }
        Trains::All => model.llm.unfreeze(),
    }
    model.projector.unfreeze();
    model.vision.unfreeze(training.vision_layers).unwrap();
    let frozen = frozen_bytes(&mut model, place);
    let mut ids = vec![IMAGE_TOKEN];
    ids.extend((0..TEXT).map(|position| (position * 7 % 500) as i32));
    let label = |(position, id): (usize, &i32)| if position + LEARNED > TEXT { *id } else { -100 };
    let labels: Vec<i32> = ids.iter().enumerate().map(label).collect();
    let samples = [0, 1].map(|image| Sample { input_ids: &ids, labels: &labels, images: [&[0], &[1]][image] });
    let features = model.encode_images(&vec![vec![0.1; 3 * 80 * 80]; IMAGES]);
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let mut optimizer = Optimizer::new(&mut model, settings, 1.0);
    PEAK.store(LIVE.load(Relaxed), Relaxed);
    let mut total: Vec<Mat> = Vec::new();
    for _ in 0..2 {
        let pass = Pass::training(1, 0);
        let pass = if training.gradient_checkpointing { pass.with_gradient_checkpointing() } else { pass };
        let (_, gradients) = model.loss_and_gradients(&pass, &samples, &features, 4 * LEARNED);
        if total.is_empty() {
            total = gradients;
        } else {
            total.iter_mut().zip(gradients).for_each(|(to, from)| accumulate(to, &from));
        }
    }
    optimizer.update(&mut model, &total, |_| Rate { learning_rate: 1e-3, weight_decay: 0.0 });
    match &place.device {
        None => PEAK.load(Relaxed) - before,
        Some(device) => device.peak_bytes() as usize - frozen,
    }
}

/// Moves the model to `place`. Returns the bytes that its frozen weights take on a device.
fn frozen_bytes(model: &mut Imp, place: &Place) -> usize {
    model.move_to(place);
    let mut trained = 0;
    model.trainable(&mut |_, mat| trained += mat.count() * 4);
    place.device.as_ref().map_or(0, |device| device.peak_bytes() as usize - trained)
}

/// Makes all threads of the pool allocate what each allocates once, for its first products, and what is no part of a step: for small
/// and for larger products, and for their gradients.
fn warm_up() {
    rayon::broadcast(|_| {
        for width in [128, 160] {
            let graph = Graph::recording();
            let weight = Weight::Dense(Mat::zeros(width, width).trainable());
            let product = linear(&graph, &Mat::zeros(256, width).trainable(), &weight, None);
            graph.backward(&product);
        }
    });
}

#[test]
fn the_forecast_matches_the_allocator() {
    warm_up();
    let vision = vision();
    let batch = MicroBatch { rows: IMAGES * (TEXT + vision.patches()), learned: IMAGES * LEARNED, images: IMAGES };
    let some = ["q_proj".to_string(), "fc1".to_string(), "down_proj".to_string()];
    for family in [Family::Phi, Family::Qwen2, Family::Llama, Family::Phi3] {
        let (llm, folder) = (language(family), tempfile::tempdir().unwrap());
        for name in ["llm", "vision"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        init::write_language(&folder.path().join("llm"), &llm, 1, Encoding::F16).unwrap();
        init::write_vision(&folder.path().join("vision"), &vision, 1).unwrap();
        let known: Vec<String> = some
            .iter()
            .filter(|name| llm.family.block_layers().iter().any(|layer| layer.short_name() == name.as_str()))
            .cloned()
            .collect();
        let all = [
            Trains::Projector,
            Trains::Adapters { rank: 8, dropout: true, dora: false, targets: &[] },
            Trains::Adapters { rank: 64, dropout: false, dora: false, targets: &[] },
            Trains::Adapters { rank: 8, dropout: true, dora: false, targets: &known },
            Trains::Adapters { rank: 8, dropout: true, dora: true, targets: &[] },
            Trains::Adapters { rank: 64, dropout: false, dora: true, targets: &known },
            Trains::All,
        ];
        let mut cases: Vec<_> = all.into_iter().flat_map(|trains| [(trains, false, 0), (trains, true, 0)]).collect();
        if family == Family::Phi {
            cases.extend([(Trains::Projector, true, 1), (Trains::All, false, 1)]);
        }
        for (trains, gradient_checkpointing, vision_layers) in cases {
            let training = Training {
                llm: &llm,
                vision: &vision,
                projector: ProjectorType::Mlp(2),
                trains,
                vision_layers,
                gradient_checkpointing,
            };
            if family == Family::Phi && matches!(trains, Trains::Projector) {
                // Likewise this thread.
                measured(folder.path(), &training);
            }
            let (forecast, measured) = (training.memory(batch, true), measured(folder.path(), &training));
            let ratio = forecast.total() as f64 / measured as f64;
            // The forecast ignores small buffers, such as labels, and adds up peaks that are not simultaneous.
            assert!(
                (0.9..1.1).contains(&ratio),
                "{family:?}, {training:?}: forecast {forecast:?}, measured {measured}"
            );
            #[cfg(feature = "emulated")]
            if on_device(family, trains) {
                check_device(folder.path(), &training, batch);
            }
        }
    }
}

/// All that trains in Phi, and the smaller adapters in Phi-3, whose projections are stacked: the emulated device is slow.
#[cfg(feature = "emulated")]
fn on_device(family: Family, trains: Trains<'_>) -> bool {
    let small = matches!(trains, Trains::Adapters { rank: 8, targets: [], .. });
    match family {
        Family::Phi => small || matches!(trains, Trains::All | Trains::Projector),
        _ => family == Family::Phi3 && small,
    }
}

/// Activations in bf16. The forecast adds up peaks that are not simultaneous, and ignores the copies of weights that are
/// converted while they are used, which are large beside the activations only here.
#[cfg(feature = "emulated")]
fn check_device(folder: &Path, training: &Training<'_>, batch: MicroBatch) {
    use imp_model::{Precision, tensor::Device};
    let place = Place::device(Device::emulated(0, u64::MAX), Precision::Bf16);
    let measured = measured_at(folder, training, &place);
    let forecast = training.device_memory(batch, true, Precision::Bf16);
    let ratio = forecast.total() as f64 / measured as f64;
    assert!((0.85..1.15).contains(&ratio), "{training:?}: forecast {forecast:?}, measured {measured}");
}
