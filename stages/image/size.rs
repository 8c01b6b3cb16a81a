//! The key `image_size`: images of a different size than the encoder was trained on. Independent of the kind of stage.

use imp_model::vision::VisionTower;

use crate::{StageError, contract::stage::ConfigIssue};

/// Checks the range. Whether an encoder can take such images is known when it is loaded.
pub(crate) fn check_image_size(image_size: Option<usize>) -> Result<(), ConfigIssue> {
    match image_size {
        Some(size) if !(1..=4096).contains(&size) => Err(ConfigIssue::new("image_size", "must be between 1 and 4096")),
        _ => Ok(()),
    }
}

/// Makes `vision` take images of this size. Returns whether the size has changed.
pub(crate) fn resize(vision: &mut VisionTower, image_size: Option<usize>) -> Result<bool, StageError> {
    let Some(size) = image_size.filter(|size| *size != vision.config.image_size) else { return Ok(false) };
    vision.resize(size).map_err(|error| {
        StageError::failed(format!("image_size: {}", error.message()), "give the size of a patch, or a larger one")
    })?;
    Ok(true)
}
