//! The first frame of a GIF as Pillow shows it: on the whole canvas, with the palette's colours where it is transparent.

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use image::{Rgb, RgbImage};

use super::MOST_PIXELS;

/// Decodes a GIF file. Pixels that the frame leaves out have the colour of its transparent index, else of index 0.
pub(super) fn decode(encoded: &[u8]) -> Result<RgbImage, String> {
    let said = |error: DecodingError| error.to_string();
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // The decoder's memory is our own buffer, whose size is checked first.
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut decoder = options.read_info(encoded).map_err(said)?;
    let frame = decoder.next_frame_info().map_err(said)?.ok_or("the GIF file holds no image")?.clone();
    let (left, top) = (u32::from(frame.left), u32::from(frame.top));
    let (across, down) = (usize::from(frame.width), usize::from(frame.height));
    // A frame that does not fit makes the canvas larger.
    let width = u32::from(decoder.width()).max(left + u32::from(frame.width));
    let height = u32::from(decoder.height()).max(top + u32::from(frame.height));
    if width as usize * height as usize > MOST_PIXELS {
        return Err(format!("an image of {width} x {height} pixels is too large"));
    }
    let mut indices = vec![0; across * down];
    decoder.read_into_buffer(&mut indices).map_err(said)?;
    let palette = frame.palette.as_deref().or(decoder.global_palette());
    let colour = |index: u8| match palette {
        Some(palette) => {
            let start = 3 * usize::from(index);
            Rgb(palette.get(start..start + 3).map_or([0; 3], |colour| [colour[0], colour[1], colour[2]]))
        }
        None => Rgb([index; 3]),
    };
    let mut image = RgbImage::from_pixel(width, height, colour(frame.transparent.unwrap_or(0)));
    for (row, line) in indices.chunks_exact(across.max(1)).enumerate() {
        for (column, index) in line.iter().enumerate() {
            image.put_pixel(left + column as u32, top + row as u32, colour(*index));
        }
    }
    Ok(image)
}
