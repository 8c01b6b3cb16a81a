//! Cached features of a set's images: how a frozen encoder computes them, and whether they fit a model.
//! Independent of who stores and who trains on them.
//!
//! `features.bin` holds `[patches, width]` f32, little-endian, for each image in the set's order. They are not rounded:
//! training on them gives the same weights as training without them.

use imp_model::{Precision, tensor::Mat, vision::Siglip};
use rayon::prelude::*;

use super::records::{FeatureMeta, RecordSet};
use crate::{
    StageError,
    image::pixels::{self, AspectRatio},
};

/// The input of `preprocess` that names the encoder.
pub(crate) const INPUT: &str = "cache_vision_features";

/// The features of one image. Images are encoded one at a time, so that features do not depend on the batch.
pub(crate) fn encode(vision: &Siglip, pixels: Vec<f32>) -> Mat {
    vision.encode(&[pixels])
}

pub(crate) fn decode(
    set: &RecordSet,
    numbers: std::ops::Range<usize>,
    size: usize,
) -> Result<Vec<Vec<f32>>, StageError> {
    let aspect_ratio = AspectRatio::by_name(&set.meta().image_aspect_ratio).unwrap_or_default();
    let decoded = numbers.into_par_iter().map(|number| {
        pixels::pixels(set.image(number).unwrap_or_default(), aspect_ratio, size).map_err(|error| {
            StageError::failed(format!("image {number} of the set can't be decoded: {error}"), "run it again")
        })
    });
    decoded.collect()
}

/// Checks that the features of `set`, if it has any, are those of `vision`: the same sizes, and nearly the same values for
/// the first image. Not the same bits, since another machine may have computed them.
pub(crate) fn check(
    set: &RecordSet,
    vision: &Siglip,
    select_layer: i64,
    precision: Precision,
) -> Result<(), StageError> {
    let Some(meta) = &set.meta().features else { return Ok(()) };
    let own = FeatureMeta {
        patches: vision.config.patches(),
        width: vision.config.hidden_size,
        mm_vision_select_layer: select_layer,
        precision,
    };
    if meta.precision != precision {
        return Err(StageError::failed(
            "the features in the records were computed in another precision than this stage's",
            format!("give the preprocess stage and this one the same `precision`, or no `{INPUT}`"),
        ));
    }
    let same = *meta == own && first_is_same(set, vision)?;
    if same {
        return Ok(());
    }
    Err(StageError::failed(
        "the features in the records are not those of this model's vision encoder",
        format!("give the preprocess stage the same encoder as `{INPUT}` and the same `image_size`, or none"),
    ))
}

fn first_is_same(set: &RecordSet, vision: &Siglip) -> Result<bool, StageError> {
    /// A different order of sums changes values by far less, a different encoder by far more.
    const TOLERANCE: f32 = 1e-2;
    let Some(kept) = set.features(0) else { return Ok(true) };
    let pixels = decode(set, 0..1, vision.config.image_size)?;
    let own: Vec<f32> = pixels.into_iter().flat_map(|pixels| encode(vision, pixels).to_host().into_owned()).collect();
    let largest = own.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    Ok(own.iter().zip(kept).all(|(own, kept)| (own - kept).abs() <= TOLERANCE * largest))
}
