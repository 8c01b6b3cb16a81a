//! Draws scenes as PNG files, in integers only, so that the bytes are the same on every machine. Independent of questions.

use image::{
    ExtendedColorType, ImageEncoder, Rgb, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};

use super::{
    dice::Dice,
    scene::{Object, Scene, Shape},
};

/// Width and height in pixels. A cell is half of that: 2 x 2 patches of 16 pixels, each of which shows the object's colour
/// and a quarter of its outline, so that every token of an object identifies it.
pub(super) const SIZE: u32 = 64;
const BACKGROUND: i32 = 26;

/// Draws a scene with jitter in position, size and colour, and with noise, so that no two images are equal.
pub(super) fn draw(scene: &Scene, dice: &mut Dice) -> RgbImage {
    let mut image = RgbImage::from_fn(SIZE, SIZE, |_, _| {
        let level = BACKGROUND + dice.around(4);
        Rgb([level as u8; 3])
    });
    for object in &scene.objects {
        draw_object(&mut image, *object, dice);
    }
    image
}

fn draw_object(image: &mut RgbImage, object: Object, dice: &mut Dice) {
    let half = SIZE as i32 / 2;
    let cell = object.cell as i32;
    let center = [cell % 2, cell / 2].map(|part| part * half + half / 2 + dice.around(1));
    let reach = 12 + dice.below(3) as i32;
    let colour = object.kind.colour.rgb().map(|level| i32::from(level) + dice.around(12));
    for y in center[1] - reach..=center[1] + reach {
        for x in center[0] - reach..=center[0] + reach {
            if covers(object.kind.shape, x - center[0], y - center[1], reach) {
                let noise = dice.around(4);
                image.put_pixel(x as u32, y as u32, Rgb(colour.map(|level| (level + noise).clamp(0, 255) as u8)));
            }
        }
    }
}

/// Whether a shape that extends `reach` pixels from its centre covers the point (x, y), relative to it; y grows downwards.
fn covers(shape: Shape, x: i32, y: i32, reach: i32) -> bool {
    match shape {
        Shape::Circle => x * x + y * y <= reach * reach,
        Shape::Square => x.abs() < reach && y.abs() < reach,
        Shape::Triangle => 2 * x.abs() <= y + reach,
    }
}

/// Encodes the image as PNG with fixed settings.
pub(super) fn png(image: &RgbImage) -> Result<Vec<u8>, image::ImageError> {
    let mut file = Vec::new();
    PngEncoder::new_with_quality(&mut file, CompressionType::Default, FilterType::Sub).write_image(
        image.as_raw(),
        image.width(),
        image.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(file)
}
