//! Small images for answers, as `data:` addresses. Independent of whose answers they are.

use std::{collections::HashMap, fs, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder, imageops};
use imp_stages::{contract::paths::stays_inside, image::pixels};
use rayon::prelude::*;

use super::{AnswerSet, RunSource};

/// The most images on a page, the length of their longer side in pixels, and the quality of the JPEG files.
const MOST: usize = 120;
const SIDE: u32 = 128;
const QUALITY: u8 = 80;
/// The largest file to decode.
const LARGEST: u64 = 1 << 26;

/// Gives the rows of `sets` their images, and returns these. If there are too many, rows whose questions have the smallest digests
/// come first.
pub(super) fn of(sets: &mut [AnswerSet], sources: &[RunSource<'_>]) -> Vec<String> {
    let path_of = |set: &AnswerSet, named: &str| -> Option<PathBuf> {
        let (input, path) = named.split_once('/')?;
        let tree = set.inputs.get(input)?;
        stays_inside(path).then(|| sources[set.run].store.tree_path(*tree).join(path))
    };
    let mut wanted: Vec<([u8; 8], PathBuf)> = sets
        .iter()
        .flat_map(|set| set.rows.iter().filter_map(|row| Some((row.order, path_of(set, row.image_file.as_deref()?)?))))
        .collect();
    wanted.sort();
    let mut chosen: Vec<PathBuf> = Vec::new();
    for (_, path) in wanted {
        if chosen.len() < MOST && !chosen.contains(&path) {
            chosen.push(path);
        }
    }
    let made: Vec<Option<String>> = chosen.par_iter().map(thumbnail).collect();
    let (mut images, mut places) = (Vec::new(), HashMap::new());
    for (path, image) in chosen.into_iter().zip(made) {
        if let Some(image) = image {
            places.insert(path, images.len());
            images.push(image);
        }
    }
    for set in sets {
        let found: Vec<Option<usize>> =
            set.rows.iter().map(|row| places.get(&path_of(set, row.image_file.as_deref()?)?).copied()).collect();
        for (row, image) in set.rows.iter_mut().zip(found) {
            row.image = image;
        }
    }
    images
}

/// A small copy of an image. `None` if it can't be read: the page shows the answer without it.
fn thumbnail(path: &PathBuf) -> Option<String> {
    let is_small = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= LARGEST);
    let image = pixels::decode(&is_small.then(|| fs::read(path).ok())??).ok()?;
    let scale = (f64::from(SIDE) / f64::from(image.width().max(image.height()))).min(1.0);
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    let small = imageops::thumbnail(&image, side(image.width()), side(image.height()));
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode(&small, small.width(), small.height(), ExtendedColorType::Rgb8)
        .ok()?;
    Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_thumbnail_is_a_small_jpeg() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        image::RgbImage::from_fn(640, 2, |x, _| image::Rgb([x as u8, 0, 0])).save(&path).unwrap();
        let address = thumbnail(&path).unwrap();
        let bytes = STANDARD.decode(address.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        let small = pixels::decode(&bytes).unwrap();
        assert_eq!(small.dimensions(), (128, 1));
        std::fs::write(&path, "no image").unwrap();
        assert_eq!(thumbnail(&path), None);
    }
}
