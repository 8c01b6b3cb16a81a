//! Transformers' `preprocessor_config.json`, both ways. Fields: transformers' `image_processing_*.py`.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::{
    encoder::Encoder,
    error::Result,
    images::{Filter, Fit, ImageProcessor},
};

/// Pillow's numbers of filters, which the key `resample` has.
const FILTERS: [(u64, Filter); 2] = [(2, Filter::Bilinear), (3, Filter::Bicubic)];
/// The largest side of an image in pixels.
const LARGEST: usize = 1 << 14;

impl ImageProcessor {
    /// Reads the keys of a `preprocessor_config.json`. Missing ones are as in the encoder's published checkpoints.
    pub(super) fn read(keys: &Keys<'_>, default: &Self) -> Result<Self> {
        for step in ["do_resize", "do_rescale"] {
            if !keys.flag(step, true)? {
                return Err(keys.wrong(format!("images without `{step}` are not supported")));
            }
        }
        let factor = keys.float("rescale_factor", 1.0 / 255.0)?;
        if (factor * 255.0 - 1.0).abs() > 1e-6 {
            return Err(keys.wrong(format!("`rescale_factor` = {factor} is not supported: it must be 1/255")));
        }
        let normalizes = keys.flag("do_normalize", true)?;
        let channels =
            |name: &str, default, without| if normalizes { channels(keys, name, default) } else { Ok(without) };
        let (mean, std) =
            (channels("image_mean", default.mean, [0.0; 3])?, channels("image_std", default.std, [1.0; 3])?);
        if std.iter().any(|std| *std <= 0.0) {
            return Err(keys.wrong("`image_std` must be positive"));
        }
        let filter = match keys.get("resample") {
            None => default.filter,
            Some(value) => FILTERS
                .iter()
                .find(|(number, _)| value.as_u64() == Some(*number))
                .map(|(_, filter)| *filter)
                .ok_or_else(|| {
                    keys.wrong(format!("`resample` = {value} is not supported: it must be 2 (bilinear) or 3 (bicubic)"))
                })?,
        };
        Ok(Self { mean, std, filter, fit: fit(keys, default.fit)? })
    }

    /// The keys for images of `size` pixels, without the class.
    pub(super) fn to_json(self, size: usize) -> Map<String, Value> {
        let filter = FILTERS.iter().find(|(_, filter)| *filter == self.filter).map(|(number, _)| *number);
        let square = json!({"height": size, "width": size});
        let mut map = Map::from_iter([
            ("do_convert_rgb".to_string(), json!(true)),
            ("do_resize".into(), json!(true)),
            ("size".into(), square.clone()),
            ("resample".into(), json!(filter)),
            ("do_rescale".into(), json!(true)),
            ("rescale_factor".into(), json!(1.0 / 255.0)),
            ("do_normalize".into(), json!(true)),
            ("image_mean".into(), json!(self.mean)),
            ("image_std".into(), json!(self.std)),
        ]);
        if let Fit::Crop { .. } = self.fit {
            map.insert("size".into(), json!({"shortest_edge": self.fit.edge(size)}));
            map.insert("do_center_crop".into(), json!(true));
            map.insert("crop_size".into(), square);
        }
        map
    }
}

impl Encoder {
    /// The `preprocessor_config.json` for images of `size` pixels.
    pub fn processor_json(self, images: &ImageProcessor, size: usize) -> Value {
        let mut map = images.to_json(size);
        map.insert("image_processor_type".into(), json!(self.description().processor));
        Value::Object(map)
    }
}

/// A number for each channel.
fn channels(keys: &Keys<'_>, name: &str, default: [f64; 3]) -> Result<[f64; 3]> {
    let Some(value) = keys.get(name) else { return Ok(default) };
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect());
    let three = numbers.and_then(|numbers| <[f64; 3]>::try_from(numbers).ok());
    three.ok_or_else(|| keys.wrong(format!("`{name}` must be three numbers, not {value}")))
}

/// How an image becomes a square.
fn fit(keys: &Keys<'_>, default: Fit) -> Result<Fit> {
    let crops = keys.flag("do_center_crop", matches!(default, Fit::Crop { .. }))?;
    let crop = keys.get("crop_size").filter(|_| crops).map(|value| square(keys, "crop_size", value)).transpose()?;
    let usual = match default {
        Fit::Crop { side, .. } => side,
        Fit::Stretch => 0,
    };
    let shape = match keys.get("size") {
        None => return Ok(crop.map_or(default, |side| default.of(side))),
        Some(value) => Shape::read(keys, value, default)?,
    };
    match (shape, crop.or(Some(usual).filter(|side| crops && *side > 0))) {
        (Shape::Square(_), None) => Ok(Fit::Stretch),
        (Shape::Square(size), Some(side)) if size == side => Ok(Fit::Stretch),
        (Shape::Edge(edge), Some(side)) if edge >= side => Ok(Fit::Crop { edge, side }),
        (Shape::Edge(_), None) => Err(keys
            .wrong("`size.shortest_edge` without `do_center_crop` leaves images that are not square: not supported")),
        (Shape::Square(size) | Shape::Edge(size), Some(side)) => {
            Err(keys.wrong(format!("`crop_size` = {side} of images of the `size` {size} is not supported")))
        }
    }
}

/// The value of `size`.
enum Shape {
    Square(usize),
    Edge(usize),
}

impl Shape {
    /// Older files have one number, which each class takes in its own way.
    fn read(keys: &Keys<'_>, value: &Value, default: Fit) -> Result<Self> {
        let edge = match default {
            Fit::Crop { .. } if value.is_number() => Some(value),
            _ => value.get("shortest_edge").filter(|edge| !edge.is_null()),
        };
        match edge {
            Some(edge) => length(keys, "size", edge).map(Self::Edge),
            None => square(keys, "size", value).map(Self::Square),
        }
    }
}

/// One number, or a `height` and a `width` that are the same.
fn square(keys: &Keys<'_>, name: &str, value: &Value) -> Result<usize> {
    if value.is_number() {
        return length(keys, name, value);
    }
    let side = value.get("height").filter(|height| value.get("width") == Some(height));
    match side {
        Some(side) => length(keys, name, side),
        None => Err(keys.wrong(format!("`{name}` = {value} is not supported: it must be a square"))),
    }
}

fn length(keys: &Keys<'_>, name: &str, value: &Value) -> Result<usize> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number
        .filter(|number| (1..=LARGEST).contains(number))
        .ok_or_else(|| keys.wrong(format!("`{name}` must be from 1 to {LARGEST} pixels, not {value}")))
}
