//! The features of images for training: encoded once, as far as the encoder is frozen, and kept if they fit; or read from the
//! records. Where blocks of the encoder train, these are what they take, and each step completes them. Independent of where images
//! come from.

use std::collections::HashMap;

use imp_model::{
    Imp, Precision, Sample,
    config::VisionConfig,
    tensor::{self, Graph, Mat, Place},
};

use super::batches::Images;
use crate::{
    StageError,
    data::{features, mixture::Mixture, records::Record},
};

/// Features are kept in memory if all of them take less than this.
const MEMORY: usize = 512 << 20;

/// Bytes of the features of `images` images, if they are few enough to be kept. The encoder's last `trained` blocks train.
pub(super) fn kept_bytes(vision: &VisionConfig, trained: usize, images: usize) -> Option<usize> {
    let bytes = images.saturating_mul(vision.encoded_rows(trained) * vision.hidden_size * size_of::<f32>());
    Some(bytes).filter(|bytes| *bytes <= MEMORY)
}

/// Bytes of these features on a device in `precision`.
pub(super) fn device_bytes(vision: &VisionConfig, trained: usize, images: usize, precision: Precision) -> u64 {
    (kept_bytes(vision, trained, images).unwrap_or(0) / size_of::<f32>() * precision.bytes()) as u64
}

/// Features by image number, `[patches, vision hidden]` each; where blocks of the encoder train, `[tokens, vision hidden]`.
pub(super) struct Features {
    known: HashMap<u32, Mat>,
    /// Whether they are kept from step to step.
    pub(super) kept: bool,
}

/// Records as the model takes them, with the features of their images.
pub(super) struct Batch<'a> {
    records: &'a [Record<'a>],
    images: Vec<Vec<usize>>,
    pub(super) features: Mat,
}

impl Features {
    /// No features yet, of the images of `data`, to be computed in `precision`.
    pub(super) fn new(model: &Imp, data: &Mixture, precision: Precision) -> Result<Self, StageError> {
        for set in data.sets() {
            features::check(set, &model.vision, model.config.mm_vision_select_layer, precision)?;
        }
        let kept = kept_bytes(&model.vision.config, model.vision.trained(), data.images()).is_some();
        Ok(Self { known: HashMap::new(), kept })
    }

    /// Encodes images one at a time, so that their features do not depend on the batch.
    pub(super) fn encode(&mut self, model: &Imp, images: Images) {
        self.known.extend(images.into_iter().map(|(number, pixels)| (number, model.encode_images(&[pixels]))));
    }

    /// Whether the features of an image are known.
    pub(super) fn has(&self, number: u32) -> bool {
        self.known.contains_key(&number)
    }

    /// To be called after a step.
    pub(super) fn forget(&mut self) {
        if !self.kept {
            self.known.clear();
        }
    }

    /// The features that `records` need, in their order, `[images * rows, vision hidden]` with the rows of each as above.
    pub(super) fn batch<'a>(&self, model: &Imp, records: &'a [Record<'a>]) -> Result<Batch<'a>, StageError> {
        let (width, place) = (model.vision.config.hidden_size, model.vision.place());
        let (mut parts, mut stored, mut images, mut count) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for record in records {
            let numbers = record.image_numbers();
            images.push((count..count + numbers.len()).collect());
            count += numbers.len();
            if let Some(features) = record.features() {
                features.for_each(|image| stored.extend_from_slice(image));
                continue;
            }
            // What was read so far lies before what is known.
            parts.extend(from_stored(&mut stored, width, &place));
            for number in numbers {
                let known = self.known.get(&number).ok_or_else(|| {
                    let message = format!("record `{}`: its image was not loaded", record.id);
                    StageError::failed(message, "run it again")
                })?;
                parts.push(known.clone());
            }
        }
        parts.extend(from_stored(&mut stored, width, &place));
        let parts: Vec<&Mat> = parts.iter().collect();
        Ok(Batch { records, images, features: tensor::concat(&Graph::inference(), width, &parts) })
    }
}

/// Features that were read from files as a matrix at `place`, if there are any.
fn from_stored(values: &mut Vec<f32>, width: usize, place: &Place) -> Option<Mat> {
    let values = std::mem::take(values);
    (!values.is_empty()).then(|| Mat::from_host(values.len() / width, width, values).to(place))
}

impl Batch<'_> {
    pub(super) fn samples(&self) -> Vec<Sample<'_>> {
        let parts = self.records.iter().zip(&self.images);
        parts.map(|(record, images)| Sample { input_ids: record.input_ids, labels: record.labels, images }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_train_take_the_class_token_too() {
        let clip = VisionConfig::clip_vit_large_patch14_336();
        assert_eq!(kept_bytes(&clip, 0, 10), Some(10 * 576 * 1024 * 4));
        assert_eq!(kept_bytes(&clip, 2, 10), Some(10 * 577 * 1024 * 4));
        assert_eq!(device_bytes(&clip, 2, 10, Precision::Bf16), 10 * 577 * 1024 * 2);
    }
}
