//! Cached features of a set's images: how a frozen encoder computes them, and whether they fit a model.
//! Independent of who stores and who trains on them.
//!
//! `features.bin` holds `[patches, width]` f32, little-endian, for each image in the set's order. They are not rounded:
//! training on them gives the same weights as training without them.

use imp_model::{Precision, config::VisionConfig, tensor::Mat, vision::VisionTower};
use rayon::prelude::*;

use super::records::{FeatureMeta, RecordSet};
use crate::{
    StageError,
    image::pixels::{AspectRatio, Recipe},
};

/// The input of `preprocess` that names the encoder.
pub(crate) const INPUT: &str = "cache_vision_features";

/// The features of one image. Images are encoded one at a time, so that features do not depend on the batch.
pub(crate) fn encode(vision: &VisionTower, pixels: &[f32]) -> Mat {
    vision.encode(&[pixels])
}

pub(crate) fn decode(
    set: &RecordSet,
    numbers: std::ops::Range<usize>,
    encoder: &VisionConfig,
) -> Result<Vec<Vec<f32>>, StageError> {
    let aspect_ratio = AspectRatio::by_name(&set.meta().image_aspect_ratio).unwrap_or_default();
    let recipe = Recipe::new(aspect_ratio, encoder);
    let decoded = numbers.into_par_iter().map(|number| {
        recipe.pixels(set.image(number).unwrap_or_default()).map_err(|error| {
            StageError::failed(format!("image {number} of the set can't be decoded: {error}"), "run it again")
        })
    });
    decoded.collect()
}

/// Checks that the features of `set`, if it has any, are those of `vision`: the same sizes, and nearly the same values for
/// some images. Not the same bits, since another machine may have computed them.
pub(crate) fn check(
    set: &RecordSet,
    vision: &VisionTower,
    select_layer: i64,
    precision: Precision,
) -> Result<(), StageError> {
    let Some(meta) = &set.meta().features else { return Ok(()) };
    if vision.trained() > 0 {
        return Err(StageError::failed(
            "the records have features of the vision encoder, whose last blocks train here",
            format!("give the preprocess stage no `{INPUT}`, or leave `vision_layers` out"),
        ));
    }
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
    let same = *meta == own && some_are_same(set, vision)?;
    if same {
        return Ok(());
    }
    Err(StageError::failed(
        "the features in the records are not those of this model's vision encoder",
        format!("give the preprocess stage the same encoder as `{INPUT}` and the same `image_size`, or none"),
    ))
}

/// Whether the kept features of some images are those of `vision`.
fn some_are_same(set: &RecordSet, vision: &VisionTower) -> Result<bool, StageError> {
    let last = set.meta().images.saturating_sub(1);
    let mut numbers = vec![0, last / 2, last];
    numbers.dedup();
    for number in numbers {
        let Some(kept) = set.features(number) else { continue };
        let pixels = decode(set, number..number + 1, &vision.config)?;
        let own: Vec<f32> =
            pixels.into_iter().flat_map(|pixels| encode(vision, &pixels).to_host().into_owned()).collect();
        if !are_near(&own, kept) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether features differ no more than sums in another order do: at worst by a share of the largest value, and in the mean by a
/// share of the usual one, which a few large values don't hide.
fn are_near(own: &[f32], kept: &[f32]) -> bool {
    const WORST: f32 = 1e-2;
    const USUAL: f64 = 2e-2;
    let largest = own.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let worst = own.iter().zip(kept).map(|(own, kept)| (own - kept).abs()).fold(0.0_f32, f32::max);
    let size: f64 = own.iter().map(|value| f64::from(value.abs())).sum();
    let difference: f64 = own.iter().zip(kept).map(|(own, kept)| f64::from((own - kept).abs())).sum();
    worst <= WORST * largest && difference <= USUAL * size
}

#[cfg(test)]
mod tests {
    use super::are_near;

    #[test]
    fn one_large_value_does_not_hide_that_the_others_differ() {
        let own: Vec<f32> = (0..100).map(|number| if number == 0 { 500.0 } else { (number % 7) as f32 }).collect();
        let scaled = |by: f32| own.iter().map(|value| value * by).collect::<Vec<_>>();
        assert!(are_near(&own, &own) && are_near(&own, &scaled(1.001)));
        assert!(!are_near(&own, &scaled(1.05)));
        let mut other = own.clone();
        other[1..].iter_mut().for_each(|value| *value = 4.0 - *value);
        assert!(!are_near(&own, &other), "each is within 1 % of the largest and far from its own value");
    }
}
