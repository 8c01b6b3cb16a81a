//! Reads the fixtures.
#![allow(dead_code, reason = "not every test program uses all of it")]

use std::path::{Path, PathBuf};

use imp_model::{Imp, Sample};
use safetensors::{Dtype, SafeTensors};

pub(crate) fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(relative)
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

/// A batch of the reference, without its padding.
pub(crate) struct Batch {
    pub(crate) images: Vec<Vec<f32>>,
    pub(crate) ids: Vec<Vec<i32>>,
    pub(crate) labels: Vec<Vec<i32>>,
}

const PAD: i32 = 5;

impl Batch {
    pub(crate) fn read(from: &Fixture, prefix: &str) -> Self {
        let name = |part: &str| format!("{prefix}{part}");
        let images = if from.has(&name("images")) { name("images") } else { name("pixel_values") };
        let width = from.shape(&name("input_ids"))[1];
        let ids = from.ids(&name("input_ids"));
        let labels = if from.has(&name("labels")) { from.ids(&name("labels")) } else { vec![-100; ids.len()] };
        let kept = |line: &[i32]| line.iter().rposition(|id| *id != PAD).map_or(0, |last| last + 1);
        let lengths: Vec<usize> = ids.chunks(width).map(kept).collect();
        let cut =
            |all: &[i32]| all.chunks(width).zip(&lengths).map(|(line, length)| line[..*length].to_vec()).collect();
        Self { images: from.images(&images), ids: cut(&ids), labels: cut(&labels) }
    }

    /// The reference hands out images in order, and a sample without an image token uses one up.
    pub(crate) fn samples(&self) -> Vec<Sample<'_>> {
        static NUMBERS: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut next = 0;
        self.ids
            .iter()
            .zip(&self.labels)
            .map(|(ids, labels)| {
                let count = ids.iter().filter(|id| **id == -200).count();
                let images = &NUMBERS[next..next + count];
                next += count.max(1);
                Sample { input_ids: ids, labels, images }
            })
            .collect()
    }
}

/// The tiny Phi in the split layout.
pub(crate) fn model() -> Imp {
    Imp::load(split_folder(false).path()).unwrap()
}

/// The same with its adapters, ready to train.
pub(crate) fn model_with_lora() -> Imp {
    let mut model = Imp::load(split_folder(true).path()).unwrap();
    model.projector.unfreeze();
    for lora in model.llm.linears_mut().filter_map(|linear| linear.lora.as_mut()) {
        lora.a = lora.a.clone().trainable();
        lora.b = lora.b.clone().trainable();
    }
    model
}

fn split_folder(lora: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(path(from), folder.path().join(to)).unwrap();
    link("phi/base_llm", "llm");
    link("phi/siglip", "vision");
    link("phi/mm_projector.safetensors", "mm_projector.safetensors");
    if lora {
        link("phi/lora", "adapter");
    }
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "imp-split"}"#).unwrap();
    folder
}

/// Cuts `model.safetensors` into two files with an index, as large checkpoints come.
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
