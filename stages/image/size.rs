//! The key `image_size`: images of another size than the encoder was trained on.

use imp_model::vision::Siglip;

use crate::{StageError, contract::stage::ConfigIssue};

/// Whether an encoder can take such images is known when it is loaded.
pub(crate) fn check_image_size(image_size: Option<usize>) -> Result<(), ConfigIssue> {
    match image_size {
        Some(size) if !(1..=4096).contains(&size) => Err(ConfigIssue::new("image_size", "must be between 1 and 4096")),
        _ => Ok(()),
    }
}

/// Lets `vision` take images of this size, and says whether that is another one than before.
pub(crate) fn resize(vision: &mut Siglip, image_size: Option<usize>) -> Result<bool, StageError> {
    let Some(size) = image_size.filter(|size| *size != vision.config.image_size) else { return Ok(false) };
    vision.resize(size).map_err(|error| {
        StageError::failed(format!("image_size: {}", error.message()), "give the size of a patch, or a larger one")
    })?;
    Ok(true)
}
