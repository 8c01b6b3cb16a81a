//! Decoding, squaring and resizing, against Pillow and Imp's image processor.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use image::RgbImage;
use imp_model::{
    config::{ConfigFile, Encoder, VisionConfig},
    weights::TensorFiles,
};
use sha2::{Digest, Sha256};

use super::pixels::{AspectRatio, Recipe, blank, decode};

/// A `SigLIP`'s recipe.
fn recipe(aspect_ratio: AspectRatio, size: u32) -> Recipe {
    Recipe::new(aspect_ratio, &VisionConfig::new(Encoder::Siglip, 16, 1, 1, size as usize))
}

fn squared(image: &RgbImage, aspect_ratio: AspectRatio, size: u32) -> Result<RgbImage, String> {
    recipe(aspect_ratio, size).squared(image)
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("image/fixtures")
}

/// Those that are not in imp-flow's other fixtures (GIF, WebP, 16 bits) were made and decoded with Pillow 13.0; 10.4 decodes them to
/// the same.
const FILES: [&str; 29] = [
    "alpha_24x18.webp",
    "animated_24x18.gif",
    "animated_24x18.webp",
    "cmyk_33x21.jpg",
    "exif_rot6_64x40.jpg",
    "gray16_6x4.png",
    "gray16_trns_6x4.png",
    "gray_20x31.jpg",
    "gray_29x41.png",
    "interlaced_24x18.gif",
    "jpeg420_60x44.jpg",
    "la16_6x4.png",
    "la_6x4.png",
    "local_palette_16x12.gif",
    "lossless_24x18.webp",
    "lossy_24x18.webp",
    "near_384x300.png",
    "outside_16x12.gif",
    "palette_50x34.png",
    "progressive422_45x27.jpg",
    "rgb16_6x4.png",
    "rgb_37x53.png",
    "rgba16_6x4.png",
    "rgba_40x30.png",
    "same_56x56.png",
    "small_frame_16x12.gif",
    "transparent_16x12.gif",
    "up_7x5.png",
    "wide_500x40.png",
];

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap()
}

/// What the reference decodes `file` to: Pillow's own result where the format leaves room, else the file itself.
fn reference_decode(file: &str) -> RgbImage {
    let decoded = format!("decoded/{file}.png");
    let known = fixtures().join(&decoded).exists();
    decode(&read(&if known { decoded } else { format!("files/{file}") })).unwrap()
}

fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn files_decode_as_pillow_does() {
    let known = FILES.into_iter().filter(|file| fixtures().join(format!("decoded/{file}.png")).exists());
    assert_eq!(known.count(), 24);
    for file in FILES {
        let decoded = decode(&read(&format!("files/{file}"))).unwrap();
        assert_eq!(largest_difference(&decoded, &reference_decode(file)), 0, "{file}");
    }
}

#[test]
fn resizing_gives_pillows_bytes() {
    let known = FILES.into_iter().filter(|file| fixtures().join(format!("expected_56/square.{file}.png")).exists());
    assert_eq!(known.clone().count(), 10);
    for file in known {
        let expected = decode(&read(&format!("expected_56/square.{file}.png"))).unwrap();
        let found = squared(&reference_decode(file), AspectRatio::Square, 56).unwrap();
        assert_eq!(largest_difference(&found, &expected), 0, "{file}");
    }
}

/// The size that Imp reads, of which the reference's images would be large: `resized384.txt` has the BLAKE3 digests of
/// their values instead.
#[test]
fn resizing_to_384_gives_pillows_bytes() {
    let digests = String::from_utf8(read("resized384.txt")).unwrap();
    assert_eq!(digests.lines().count(), 10);
    for line in digests.lines() {
        let (digest, file) = line.split_once("  ").unwrap();
        let found = squared(&reference_decode(file), AspectRatio::Square, 384).unwrap();
        assert_eq!(blake3::hash(found.as_raw()).to_hex().as_str(), digest, "{file}");
    }
}

#[test]
fn padding_and_cropping_are_the_references() {
    for mode in [AspectRatio::Pad, AspectRatio::Crop] {
        let expected = decode(&read(&format!("expected_56/{}.rgb_37x53.png.png", mode.name()))).unwrap();
        let found = squared(&reference_decode("rgb_37x53.png"), mode, 56).unwrap();
        assert_eq!(largest_difference(&found, &expected), 0, "{mode:?}");
    }
}

#[test]
fn pixel_values_are_planes_from_minus_one_to_one() {
    let file = read("files/same_56x56.png");
    let (values, image) = (recipe(AspectRatio::Square, 56).pixels(&file).unwrap(), decode(&file).unwrap());
    assert_eq!(values.len(), 3 * 56 * 56);
    // Literal values of the reference's table, bit for bit.
    for (level, expected) in [(0_u8, -1.0_f32), (1, -0.992_156_9), (2, -0.984_313_7), (255, 1.0)] {
        if let Some(at) = image.pixels().position(|pixel| pixel.0[2] == level) {
            assert_eq!(values[2 * 56 * 56 + at].to_bits(), expected.to_bits(), "{level}");
        }
    }
    assert!(values.iter().all(|value| (-1.0..=1.0).contains(value)));
    assert!(blank(56).iter().all(|value| *value == 0.0));
}

#[test]
fn what_is_no_image_is_an_error() {
    let (png, jpeg) = (read("files/rgb_37x53.png"), read("files/jpeg420_60x44.jpg"));
    let (gif, webp) = (read("files/outside_16x12.gif"), read("files/lossy_24x18.webp"));
    let cut = [&gif[..gif.len() / 2], &gif[..30], &gif[..7], &webp[..webp.len() / 2], &webp[..20]];
    for bytes in [&b""[..], b"hello", &png[..png.len() / 2], &png[..20]].into_iter().chain(cut) {
        assert!(decode(bytes).is_err());
    }
    // A canvas as large as can be, around a small frame.
    let mut bomb = gif.clone();
    bomb[6..10].fill(0xff);
    assert!(decode(&bomb).unwrap_err().contains("65535 x 65535 pixels is too large"));
    for file in [&gif, &webp] {
        for place in 4..file.len() {
            let mut damaged = file.clone();
            damaged[place] ^= 0x55;
            let _ = decode(&damaged);
        }
    }
    // A cut-off JPEG is always reported, and no damage inside stops the program.
    for length in 3..jpeg.len() {
        // Pillow reads some files without the two bytes of the end, too.
        let Err(error) = decode(&jpeg[..length]) else {
            assert!(length + 2 >= jpeg.len(), "{length} of {}", jpeg.len());
            continue;
        };
        assert!(length < 700 || error.contains("cut short"), "{length}: {error}");
    }
    for place in 2..jpeg.len() {
        let mut damaged = jpeg.clone();
        damaged[place] ^= 0x55;
        let _ = decode(&damaged);
    }
}

#[test]
fn slivers_are_accepted() {
    for (width, height) in [(1, 1), (1, 300), (300, 2)] {
        let image = RgbImage::from_pixel(width, height, image::Rgb([9, 8, 7]));
        for mode in [AspectRatio::Square, AspectRatio::Crop, AspectRatio::Pad] {
            assert_eq!(squared(&image, mode, 28).unwrap().dimensions(), (28, 28));
        }
        assert!(squared(&image, AspectRatio::Square, 28).unwrap().pixels().all(|pixel| pixel.0 == [9, 8, 7]));
    }
}

/// As the reference does it: a square of grey around the image, then the resizing.
#[test]
fn padding_makes_no_square_of_the_size_of_the_image() {
    for (width, height, size) in
        [(7, 3, 5), (3, 8, 5), (64, 21, 64), (1, 300, 28), (90, 2, 17), (5, 4, 20), (33, 32, 8)]
    {
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, 255]));
        let side = width.max(height);
        let mut square = RgbImage::from_pixel(side, side, image::Rgb([127; 3]));
        image::imageops::replace(&mut square, &image, i64::from((side - width) / 2), i64::from((side - height) / 2));
        let expected = squared(&square, AspectRatio::Square, size).unwrap();
        assert_eq!(squared(&image, AspectRatio::Pad, size).unwrap(), expected, "{width} x {height} to {size}");
    }
    // The squares around these would take 12 GB.
    for (width, height) in [(65_535, 1), (1, 65_535)] {
        let line = RgbImage::from_pixel(width, height, image::Rgb([0; 3]));
        assert!(squared(&line, AspectRatio::Pad, 28).unwrap().pixels().all(|pixel| pixel.0[0] <= 127));
    }
    let line = RgbImage::new(1, 1_000_000);
    for mode in [AspectRatio::Pad, AspectRatio::Square] {
        assert!(squared(&line, mode, 384).unwrap_err().contains("1 x 1000000 pixels is too long"));
    }
}

#[test]
fn files_without_an_end_mark_are_read_if_their_pixels_are_there() {
    let png = read("files/rgb_37x53.png");
    let without = &png[..png.len() - 12];
    assert_eq!(decode(without).unwrap(), decode(&png).unwrap());
    assert!(decode(&png[..png.len() - 13]).is_err(), "a byte of the checksum is missing");
    assert!(decode(&png[..png.len() - 30]).is_err());
}

#[test]
fn one_limit_holds_for_all_formats() {
    let mut bombs = Vec::new();
    // Headers only: the size has to be known before memory is taken.
    let mut png = read("files/rgb_37x53.png");
    png[16..24].copy_from_slice(&[0, 0, 0x36, 0xb0, 0, 0, 0x36, 0xb0]);
    let checksum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    bombs.push(png);
    let mut bmp = bmp();
    bmp[18..26].copy_from_slice(&[0xb0, 0x36, 0, 0, 0xb0, 0x36, 0, 0]);
    bombs.push(bmp);
    for bomb in bombs {
        let error = decode(&bomb).unwrap_err();
        assert!(error.contains("14000 x 14000 pixels is too large"), "{error}");
    }
}

/// A BMP file of two pixels: red, then blue.
fn bmp() -> Vec<u8> {
    let mut bytes = b"BM\x3e\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0\x01\0\0\0\x01\0\x18\0".to_vec();
    bytes.resize(54, 0);
    bytes.extend([0, 0, 255, 255, 0, 0, 0, 0]);
    bytes
}

#[test]
fn bmp_files_are_read() {
    assert_eq!(decode(&bmp()).unwrap().into_raw(), [255, 0, 0, 0, 0, 255]);
}

/// The same two pixels as Pillow 12 writes them, plain and with LZW.
#[test]
fn tiff_files_are_read() {
    const PLAIN: &[u8] = &[
        73, 73, 42, 0, 8, 0, 0, 0, 10, 0, 0, 1, 4, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 1, 4, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 1,
        3, 0, 3, 0, 0, 0, 134, 0, 0, 0, 3, 1, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 6, 1, 3, 0, 1, 0, 0, 0, 2, 0, 0, 0, 17, 1,
        4, 0, 1, 0, 0, 0, 140, 0, 0, 0, 21, 1, 3, 0, 1, 0, 0, 0, 3, 0, 0, 0, 22, 1, 4, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23,
        1, 4, 0, 1, 0, 0, 0, 6, 0, 0, 0, 28, 1, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 8, 0, 8, 0, 255, 0, 0,
        0, 0, 255,
    ];
    const LZW: &[u8] = &[
        73, 73, 42, 0, 16, 0, 0, 0, 128, 63, 192, 16, 48, 3, 254, 2, 10, 0, 0, 1, 3, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 1,
        3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 0, 3, 0, 0, 0, 142, 0, 0, 0, 3, 1, 3, 0, 1, 0, 0, 0, 5, 0, 0, 0, 6, 1,
        3, 0, 1, 0, 0, 0, 2, 0, 0, 0, 17, 1, 4, 0, 1, 0, 0, 0, 8, 0, 0, 0, 21, 1, 3, 0, 1, 0, 0, 0, 3, 0, 0, 0, 22, 1,
        3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 1, 4, 0, 1, 0, 0, 0, 8, 0, 0, 0, 28, 1, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0,
        0, 0, 8, 0, 8, 0, 8, 0,
    ];
    for file in [PLAIN, LZW] {
        assert_eq!(decode(file).unwrap().into_raw(), [255, 0, 0, 0, 0, 255]);
        for length in 0..file.len() {
            let _ = decode(&file[..length]);
        }
    }
}

#[test]
fn what_is_no_image_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    assert!(decode(pointer).unwrap_err().contains("but a pointer of Git LFS"));
    assert!(decode(b"<!DOCTYPE html>").unwrap_err().contains("but a web page"));
}

/// The checksum of PNG's chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// `Image.resize((384, 384), BICUBIC)` of Pillow 12.0, as SHA-256. Pillow 13 resizes such a tall image in the other order and gives
/// other bytes; the wide one it gives the same.
#[test]
fn tall_images_are_resized_as_before_pillow_13() {
    for (width, height, expected) in [
        (480_u32, 640_u32, "751ededec8b195aeb724a3494146446265b5e147db2866598c432ccf282a24eb"),
        (640, 480, "1277380d1c174bf384b3e0652a5c563fafc1af491e3745939d202d48c614f484"),
    ] {
        let value = |x: u32, y: u32, channel: u32| ((x * 7 + y * 13) ^ (x * y / 5 + channel * 91)) as u8;
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|channel| value(x, y, channel))));
        let resized = squared(&image, AspectRatio::Square, 384).unwrap();
        assert_eq!(crate::net::verify::hex(&Sha256::digest(resized.as_raw())), expected, "{width}x{height}");
    }
}

/// The images of `benches/peers/vision.py`.
fn drawn(width: u32, height: u32) -> RgbImage {
    let value = |x: u32, y: u32, channel: u32| ((x * 7 + y * 13) ^ (x * y / 5 + channel * 91)) as u8;
    RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|channel| value(x, y, channel))))
}

/// Shortest edge and crop of CLIP and `DINOv2`, bilinear stretching of `SigLIP` 2, each with its own statistics; and LLaVA's padding
/// in the mean colour. To the last bit.
#[test]
fn pixel_values_of_every_encoder_are_those_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/tests/fixtures/vision");
    for name in ["clip", "dinov2", "dinov2_with_registers", "siglip2"] {
        let encoder = ConfigFile::read(&fixtures.join(name)).unwrap().vision().unwrap();
        let expected = TensorFiles::open_file(&fixtures.join(name).join("expected.safetensors")).unwrap();
        for (mode, tensor) in [(AspectRatio::Square, "pixel_values"), (AspectRatio::Pad, "padded")] {
            let theirs = expected.mat(tensor, &[2, 3, 24, 24], 2, 3 * 24 * 24).unwrap();
            let recipe = Recipe::new(mode, &encoder);
            let ours = [(47, 31), (29, 52)].map(|(width, height)| recipe.pixels(&png(&drawn(width, height))).unwrap());
            let differ =
                ours.concat().iter().zip(&*theirs.to_host()).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differ, 0, "{name}, {mode:?}");
        }
    }
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
