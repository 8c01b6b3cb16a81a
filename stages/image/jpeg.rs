//! JPEG as libjpeg decodes it, bit for bit. The format leaves the inverse DCT and the upsampling of chroma open; Pillow, and
//! so every published model's training data, follows libjpeg.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};

use super::MOST_PIXELS;

/// Decodes a JPEG file: gray, RGB, and CMYK with Adobe's inverted values, all as Pillow's `convert("RGB")`.
pub(super) fn decode(encoded: &[u8]) -> Result<RgbImage, String> {
    let starved = Rc::new(Cell::new(false));
    let source = Source { rest: encoded, starved: starved.clone() };
    // libjpeg reports errors by a jump out of its caller, which the crate turns into a panic without a message.
    let decoded = catch_unwind(AssertUnwindSafe(|| read(source, &starved)));
    decoded.map_err(|error| match error.downcast_ref::<String>() {
        Some(message) => message.trim_start_matches("libjpeg fatal error: ").to_string(),
        None => "the JPEG file is damaged".into(),
    })?
}

/// The most scans of a progressive file. Usual ones have about ten, and each takes as long as the image is large.
const MOST_SCANS: usize = 100;
/// The number of scans up to the mark of the end, by the segments' lengths: other data may look like a scan.
fn scans(bytes: &[u8]) -> usize {
    const SCAN: u8 = 0xda;
    const END: u8 = 0xd9;
    let (mut at, mut count) = (2, 0);
    while let Some([0xff, mark, rest @ ..]) = bytes.get(at..) {
        at += match (*mark, rest) {
            (END, _) => break,
            // A filling byte, or marks without a segment.
            (0xff, _) => 1,
            (0x01 | 0xd0..=0xd8, _) => 2,
            (_, [high, low, ..]) => 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => break,
        };
        if *mark == SCAN {
            count += 1;
            // Its data goes on to the next mark that is neither a stuffed byte nor one of those that stand within.
            let is_mark = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7);
            let data = bytes.get(at..).unwrap_or_default();
            at += data.windows(2).position(is_mark).unwrap_or(data.len());
        }
    }
    count
}

fn read(source: Source<'_>, starved: &Cell<bool>) -> Result<RgbImage, String> {
    if scans(source.rest) > MOST_SCANS {
        return Err(format!("the JPEG file has more than {MOST_SCANS} scans"));
    }
    // Asked when all pixels are there: what is missing after them, as the mark of the end, Pillow does not need either.
    let whole = || if starved.get() { Err("the JPEG file is cut short".to_string()) } else { Ok(()) };
    let said = |error: io::Error| error.to_string();
    let jpeg = Decompress::new_reader(source).map_err(said)?;
    let (width, height) = jpeg.size();
    if width.saturating_mul(height) > MOST_PIXELS {
        return Err(format!("an image of {width} x {height} pixels is too large"));
    }
    let pixels = if matches!(jpeg.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        let mut started = jpeg.to_colorspace(ColorSpace::JCS_CMYK).map_err(said)?;
        let pixels: Vec<[u8; 4]> = started.read_scanlines().map_err(said)?;
        whole()?;
        started.finish().map_err(said)?;
        pixels.into_iter().flat_map(rgb).collect()
    } else {
        let mut started = jpeg.rgb().map_err(said)?;
        let pixels: Vec<[u8; 3]> = started.read_scanlines().map_err(said)?;
        whole()?;
        started.finish().map_err(said)?;
        pixels.into_flattened()
    };
    RgbImage::from_raw(width as u32, height as u32, pixels).ok_or_else(|| "the JPEG file is damaged".into())
}

/// RGB from inverted CMYK, as Pillow computes it.
fn rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(black);
    [cyan, magenta, yellow].map(|value| {
        let product = u32::from(255 - value) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

/// The file's bytes, and whether the decoder requested more than there are.
struct Source<'a> {
    rest: &'a [u8],
    starved: Rc<Cell<bool>>,
}

impl Read for Source<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.rest.read(to)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.starved.set(true);
        }
        Ok(self.rest)
    }

    fn consume(&mut self, amount: usize) {
        self.rest.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scans_are_counted_up_to_the_end_and_not_in_other_segments() {
        let scan = [0xff, 0xda, 0, 2, 1, 0xff, 0, 0xff, 0xd0, 7];
        let comment = [0xff, 0xfe, 0, 6, 0xff, 0xda, 0xff, 0xda];
        let file = [[0xff, 0xd8].as_slice(), &comment, &scan.repeat(3), &[0xff, 0xff, 0xd9], &scan].concat();
        assert_eq!(scans(&file), 3);
        assert_eq!(scans(&file[..file.len() - 14]), 3, "cut short");
        let many = [[0xff, 0xd8].as_slice(), &scan.repeat(MOST_SCANS + 1)].concat();
        assert!(decode(&many).unwrap_err().contains("more than 100 scans"));
        assert_eq!([&[][..], &[0xff], &[0xff, 0xd8, 0xff, 0xda]].map(scans), [0; 3]);
    }
}
