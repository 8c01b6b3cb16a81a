//! From an encoded image to the numbers that the vision tower reads, as its image processor and Imp's do it.
//! Independent of where images come from.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Rgb, RgbImage, imageops};
pub use imp_model::config::AspectRatio;
use imp_model::{
    config::{Fit, ImageProcessor, VisionConfig},
    weights::looks_like,
};

use super::{
    MOST_PIXELS, gif, jpeg,
    resize::{Axis, resize, resize_padded},
};

/// Decodes an image file; the format is recognised by the content. Alpha is dropped, EXIF rotation is not applied, an
/// animation gives its first frame. Images one pixel wide are accepted.
///
/// # Errors
/// A message, if the bytes are not a readable image.
pub fn decode(encoded: &[u8]) -> Result<RgbImage, String> {
    let image = match image::guess_format(encoded) {
        Err(_) => {
            let instead = looks_like(encoded).map(|what| format!(", but {what}")).unwrap_or_default();
            return Err(format!("this is not a PNG, JPEG, GIF, WebP, BMP or TIFF image{instead}"));
        }
        Ok(ImageFormat::Jpeg) => jpeg::decode(encoded)?,
        Ok(ImageFormat::Gif) => gif::decode(encoded)?,
        Ok(ImageFormat::Png) if !encoded.ends_with(PNG_END) => {
            // Pillow needs no end either: what matters is that all pixels are there.
            with_limits(&[encoded, PNG_END].concat(), ImageFormat::Png)?
        }
        Ok(format) => with_limits(encoded, format)?,
    };
    if image.width() == 0 || image.height() == 0 { Err("the image has no pixels".into()) } else { Ok(image) }
}

/// The chunk that ends a PNG file.
const PNG_END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// Decodes an image after its size is known to be one that Pillow decodes.
fn with_limits(encoded: &[u8], format: ImageFormat) -> Result<RgbImage, String> {
    let said = |error: ImageError| match error {
        ImageError::Unsupported(_) => format!("{format:?} images are not supported: convert it to PNG or JPEG"),
        error => error.to_string(),
    };
    let decoder = ImageReader::with_format(Cursor::new(encoded), format).into_decoder().map_err(said)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS as u64 {
        return Err(format!("an image of {width} x {height} pixels is too large"));
    }
    // Of 16-bit values: as many bytes as the most pixels take that Pillow decodes, with four channels.
    if decoder.total_bytes() > 4 * MOST_PIXELS as u64 {
        return Err(format!("an image of {width} x {height} pixels with so many bits is too large"));
    }
    // The colour type of a PNG: grey, perhaps with one value that is transparent.
    let only_grey = format == ImageFormat::Png && encoded.get(25) == Some(&0);
    Ok(rgb8(DynamicImage::from_decoder(decoder).map_err(said)?, only_grey))
}

/// Of 16-bit values Pillow keeps the upper 8 bits, but clamps pure grey images to 255, however that looks.
fn rgb8(image: DynamicImage, only_grey: bool) -> RgbImage {
    let narrow = |value: u16| if only_grey { value.min(255) as u8 } else { (value >> 8) as u8 };
    match image {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            let (width, height, wide) = (image.width(), image.height(), image.into_rgb16());
            RgbImage::from_fn(width, height, |x, y| Rgb(wide.get_pixel(x, y).0.map(narrow)))
        }
        other => other.into_rgb8(),
    }
}

/// How a vision encoder's images become pixel values.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// How images are made square before the encoder's image processor has them.
    pub aspect_ratio: AspectRatio,
    /// The encoder's image processor.
    pub processor: ImageProcessor,
    /// Width and height of the result.
    pub size: usize,
}

impl Recipe {
    /// The recipe of `encoder`.
    pub fn new(aspect_ratio: AspectRatio, encoder: &VisionConfig) -> Self {
        Self { aspect_ratio, processor: encoder.images, size: encoder.image_size }
    }

    /// Makes an image square, in u8.
    ///
    /// # Errors
    /// A message, if the image is so long that its middle stage, as wide as the result and as high as the image, would be too large.
    pub fn squared(&self, image: &RgbImage) -> Result<RgbImage, String> {
        let (size, (width, height)) = (self.size as u32, image.dimensions());
        if u64::from(width.max(height)) * u64::from(size) > MOST_PIXELS as u64 && self.aspect_ratio != AspectRatio::Crop
        {
            return Err(format!("an image of {width} x {height} pixels is too long"));
        }
        let (filter, edge) = (self.processor.filter, self.processor.fit.edge(self.size) as u64);
        let side = Axis::middle(edge, size);
        Ok(match self.aspect_ratio {
            AspectRatio::Square => {
                let short = u64::from(width.min(height));
                let axis = |length: u32| match self.processor.fit {
                    Fit::Stretch => Axis::whole(size),
                    Fit::Crop { .. } => Axis::middle(edge * u64::from(length) / short, size),
                };
                resize(image, axis(width), axis(height), filter)
            }
            _ if width == height => resize(image, side, side, filter),
            AspectRatio::Pad => {
                resize_padded(image, self.processor.mean.map(|mean| (mean * 255.0) as u8), side, filter)
            }
            AspectRatio::Crop => {
                let whole = width.min(height);
                let (left, top) = ((width - whole) / 2, (height - whole) / 2);
                resize(&imageops::crop_imm(image, left, top, whole, whole).to_image(), side, side, filter)
            }
        })
    }

    /// The pixel values `[3, size, size]` of an encoded image: squared, x/255, then (x - mean) / std.
    ///
    /// # Errors
    /// A message, if the bytes are not a readable image.
    pub fn pixels(&self, encoded: &[u8]) -> Result<Vec<f32>, String> {
        // The decoded image is freed before the next allocation, which reuses its memory.
        let image = self.squared(&decode(encoded)?)?;
        Ok(normalized(&image, &self.processor))
    }
}

/// The pixel values `[3, size, size]` of an image without content: zeros (the mean colour), as the reference feeds for
/// text-only samples. Evaluations use it to measure what a model guesses from the text alone.
pub fn blank(size: usize) -> Vec<f32> {
    vec![0.0; 3 * size * size]
}

fn normalized(image: &RgbImage, processor: &ImageProcessor) -> Vec<f32> {
    let mut planes = vec![0.0; image.len()];
    for (channel, plane) in planes.chunks_exact_mut(image.len() / 3).enumerate() {
        let (mean, std) = (processor.mean[channel] as f32, processor.std[channel] as f32);
        // As transformers rounds.
        let table: [f32; 256] = std::array::from_fn(|value| ((value as f64 * (1.0 / 255.0)) as f32 - mean) / std);
        for (value, pixel) in plane.iter_mut().zip(image.as_chunks::<3>().0) {
            *value = table[usize::from(pixel[channel])];
        }
    }
    planes
}
