//! Reads fixtures, and helpers of several test programs.
#![allow(dead_code, reason = "not every test program uses all of it")]

pub(crate) mod torch;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use imp_model::{
    Components, Imp, Precision, Sample,
    config::ImpConfig,
    encoding::{Encoding, q4f16},
    images_in_order,
    language::Decoder,
    layers::Pass,
    tensor::{self, Bytes, Mask, Mat, Place, Segments, Stored},
};
use safetensors::{Dtype, SafeTensors};

pub(crate) fn path(relative: &str) -> PathBuf {
    // A program that was built elsewhere is told at run time where the checkout is; cargo sets the same variable.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    here.as_deref().unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR"))).join("tests/fixtures").join(relative)
}

/// Where operations and models are tested: on the CPU, on the emulated device and on the GPU that the environment names, in
/// both precisions. With their names.
pub(crate) fn places() -> Vec<(String, Place)> {
    [Precision::F32, Precision::Bf16]
        .into_iter()
        .flat_map(|precision| {
            let card = card().map(|card| (format!("card {precision:?}"), Place::device(card.clone(), precision)));
            [
                (format!("host {precision:?}"), Place::host(precision)),
                #[cfg(feature = "emulated")]
                (
                    format!("emulated device {precision:?}"),
                    Place::device(tensor::Device::emulated(0, u64::MAX), precision),
                ),
            ]
            .into_iter()
            .chain(card)
        })
        .collect()
}

/// The GPU whose number is in `IMP_FLOW_TEST_GPU`.
fn card() -> Option<&'static tensor::Device> {
    static CARD: OnceLock<Option<tensor::Device>> = OnceLock::new();
    let open = || {
        let number = std::env::var("IMP_FLOW_TEST_GPU").ok()?;
        Some(tensor::Device::open(number.parse().unwrap()).unwrap())
    };
    CARD.get_or_init(open).as_ref()
}

/// The places that must give the same bits as this one: emulated devices that run their threads in other orders; for the
/// card, the card again.
pub(crate) fn other_orders(place: &Place) -> Vec<Place> {
    if place.device.as_ref() == card() {
        return vec![place.clone()];
    }
    #[cfg(feature = "emulated")]
    return [1, 2].map(|order| Place::device(tensor::Device::emulated(order, u64::MAX), place.precision)).to_vec();
    #[cfg(not(feature = "emulated"))]
    vec![place.clone()]
}

pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open(relative: &str) -> Self {
        Self(std::fs::read(path(relative)).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).unwrap().shape().to_vec()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap_or_else(|_| panic!("no tensor {name}")).data().to_vec()
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        assert_eq!(self.tensors().tensor(name).unwrap_or_else(|_| panic!("no tensor {name}")).dtype(), Dtype::F32);
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<i32> {
        self.bytes(name).chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect()
    }

    pub(crate) fn images(&self, name: &str) -> Vec<Vec<f32>> {
        let size: usize = self.shape(name)[1..].iter().product();
        self.f32(name).chunks(size).map(<[f32]>::to_vec).collect()
    }
}

/// A batch of the reference without its padding.
pub(crate) struct Batch {
    pub(crate) images: Vec<Vec<f32>>,
    pub(crate) ids: Vec<Vec<i32>>,
    pub(crate) labels: Vec<Vec<i32>>,
}

impl Batch {
    /// `pad` is the token id of the padding.
    pub(crate) fn read(from: &Fixture, prefix: &str, pad: i32) -> Self {
        let name = |part: &str| format!("{prefix}{part}");
        let images = if from.has(&name("images")) { name("images") } else { name("pixel_values") };
        let width = from.shape(&name("input_ids"))[1];
        let ids = from.ids(&name("input_ids"));
        let labels = if from.has(&name("labels")) { from.ids(&name("labels")) } else { vec![-100; ids.len()] };
        let kept = |line: &[i32]| line.iter().rposition(|id| *id != pad).map_or(0, |last| last + 1);
        let lengths: Vec<usize> = ids.chunks(width).map(kept).collect();
        let cut =
            |all: &[i32]| all.chunks(width).zip(&lengths).map(|(line, length)| line[..*length].to_vec()).collect();
        Self { images: from.images(&images), ids: cut(&ids), labels: cut(&labels) }
    }

    pub(crate) fn image_numbers(&self) -> Vec<Vec<usize>> {
        images_in_order(self.ids.iter().map(Vec::as_slice))
    }

    pub(crate) fn samples<'a>(&'a self, images: &'a [Vec<usize>]) -> Vec<Sample<'a>> {
        let sample = |((ids, labels), images): ((&'a Vec<i32>, &'a Vec<i32>), &'a Vec<usize>)| Sample {
            input_ids: ids,
            labels,
            images,
        };
        assert_eq!((self.labels.len(), images.len()), (self.ids.len(), self.ids.len()));
        self.ids.iter().zip(&self.labels).zip(images).map(sample).collect()
    }
}

/// The loss of a batch and the gradients of what trains.
pub(crate) fn loss_and_gradients(model: &mut Imp, batch: &Batch, pass: &Pass) -> (f32, Vec<Mat>) {
    let features = model.encode_images(&batch.images);
    let images = batch.image_numbers();
    let samples = batch.samples(&images);
    let count = samples.iter().map(|sample| model.labelled(sample)).sum();
    model.loss_and_gradients(pass, &samples, &features, count)
}

/// The values of each matrix.
pub(crate) fn values(mats: &[Mat]) -> Vec<Vec<f32>> {
    mats.iter().map(|mat| mat.to_host().into_owned()).collect()
}

/// An Imp in the fixtures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) pad: i32,
}

pub(crate) const PHI: Family = Family { name: "phi", pad: 5 };
pub(crate) const QWEN2: Family = Family { name: "qwen2", pad: 6 };

impl Family {
    pub(crate) fn path(self, relative: &str) -> PathBuf {
        path(self.name).join(relative)
    }

    pub(crate) fn expected(self, name: &str) -> Fixture {
        Fixture::open(&format!("{}/expected/{name}.safetensors", self.name))
    }

    /// The batch of `mm_batch`.
    pub(crate) fn batch(self) -> Batch {
        Batch::read(&self.expected("mm_batch"), "", self.pad)
    }

    /// Loads the model from its components.
    pub(crate) fn model(self) -> Imp {
        self.load("mm_projector.safetensors", None)
    }

    /// The same with trainable adapters and projector.
    pub(crate) fn model_with_lora(self) -> Imp {
        let mut model = self.load("lora/non_lora_trainables.safetensors", Some("lora"));
        model.projector.unfreeze();
        for lora in model.llm.linears_mut().filter_map(|linear| linear.lora.as_mut()) {
            lora.a = lora.a.clone().trainable();
            lora.b = lora.b.clone().trainable();
        }
        model
    }

    /// A model at a place with trainable adapters and projector, or projector only.
    pub(crate) fn trainable(self, lora: bool, place: &Place) -> Imp {
        let mut model = if lora { self.model_with_lora() } else { self.model() };
        model.projector.unfreeze();
        model.move_to(place);
        model
    }

    fn load(self, projector: &str, adapter: Option<&str>) -> Imp {
        let adapter = adapter.map(|adapter| self.path(adapter));
        let components = Components {
            llm: &self.path("base_llm"),
            vision: &self.path("siglip"),
            projector: &self.path(projector),
            adapter: adapter.as_deref(),
        };
        Imp::from_components(&components, ImpConfig::default()).unwrap()
    }
}

/// Splits `model.safetensors` into two shards with an index, as in large published models.
pub(crate) fn shard(folder: &Path) {
    let whole = folder.join("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut index = serde_json::Map::new();
    for (number, part) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        index.extend(part.iter().map(|(name, _)| (name.clone(), file.clone().into())));
        safetensors::serialize_to_file(part.to_vec(), None, &folder.join(file)).unwrap();
    }
    std::fs::remove_file(whole).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

pub(crate) fn assert_close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len(), "{what}: lengths");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: differs by {worst:e}, {tolerance:e} is allowed");
}

/// Checks the hidden states of every layer and the logits of a text, and the logits computed position by position with
/// the KV cache.
pub(crate) fn check_text(llm: &Decoder, expected: &Fixture) {
    check_text_with(llm, expected, |what, ours, theirs| assert_close(what, ours, theirs, 1e-4));
}

/// The same with another comparison, of a name, our values and the reference's.
pub(crate) fn check_text_with(llm: &Decoder, expected: &Fixture, close: impl Fn(&str, &[f32], &[f32])) {
    let (ids, pass) = (expected.ids("input_ids"), Pass::inference());
    let picks = |ids: &[i32]| ids.iter().map(|id| (0, *id as usize)).collect();
    let embedded = tensor::gather(&pass.graph, &[llm.embedding()], picks(&ids));
    let segments = Segments::new([ids.len()]);
    let states = llm.hidden_states(&embedded, &segments);
    assert!(!expected.has(&format!("hidden_states.{}", states.len())), "the reference has more hidden states");
    for (number, state) in states.iter().enumerate() {
        let name = format!("hidden_states.{number}");
        close(&name, &state.to_host(), &expected.f32(&name));
    }
    let logits = llm.logits(&pass, &llm.forward(&pass, &embedded, &segments));
    close("logits", &logits.to_host(), &expected.f32("logits"));

    let (first, mut cache) = llm.prefill(&tensor::pick_rows(&pass.graph, &embedded, [0]), &Segments::new([1]), &[0]);
    let mut cached = llm.logits(&pass, &first).to_host().into_owned();
    for position in 1..ids.len() {
        let row = tensor::gather(&pass.graph, &[llm.embedding()], picks(&ids[position..=position]));
        let hidden = llm.decode(&row, &[position], &[0], &mut cache, None);
        cached.extend_from_slice(&llm.logits(&pass, &hidden).to_host());
    }
    close("cached logits", &cached, &expected.f32("logits"));
}

/// A parameter's name in the fixtures: peft's for adapters, the training code's for the projector.
pub(crate) fn reference_name(name: &str) -> String {
    if name.contains("lora_") { format!("base_model.model.{name}") } else { name.trim_start_matches("model.").into() }
}

/// A buffer as the bytes of a stored weight.
pub(crate) fn bytes(buffer: Vec<u8>) -> Bytes {
    let length = buffer.len();
    Bytes::new(Arc::new(buffer), 0..length)
}

/// A matrix in f32, f16, bf16 and `q4f16_1`.
pub(crate) fn stored(weight: &[f32], rows: usize, cols: usize) -> Vec<Stored> {
    let (levels, scales) = q4f16::narrow(weight, cols);
    let plain = [Encoding::F32, Encoding::F16, Encoding::Bf16]
        .map(|encoding| Stored::plain(rows, cols, encoding, bytes(encoding.narrow(weight))));
    plain.into_iter().chain([Stored::q4f16(rows, cols, bytes(levels), bytes(scales))]).collect()
}

/// Pseudorandom values from `seed`.
pub(crate) fn random(seed: u64, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i as f64 + 1.0) * 12.9898 + seed as f64 * 78.233).sin() as f32 * 1.3).collect()
}

pub(crate) fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let exps: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| e / total).collect()
}

/// The rows to which `row` attends: the first, and the one after the last.
pub(crate) fn visible(mask: Mask, row: usize, sequence: &Range<usize>) -> (usize, usize) {
    match mask {
        Mask::Causal => (sequence.start, row + 1),
        Mask::Window(width) => (sequence.start.max((row + 1).saturating_sub(width)), row + 1),
        Mask::Full => (sequence.start, sequence.end),
    }
}
