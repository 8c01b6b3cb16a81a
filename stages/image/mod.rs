//! Images: from an encoded file to the numbers that a vision encoder reads, as Pillow and Imp's image processor do it.
//! Independent of where images come from.

mod gif;
mod jpeg;
pub mod pixels;
mod resize;
pub(crate) mod size;
#[cfg(test)]
mod tests;

/// Pillow refuses larger images as possible decompression bombs.
#[cfg(not(feature = "fuzzing"))]
const MOST_PIXELS: usize = 178_956_970;
/// A fuzzer tries sizes of every kind, and should neither wait for large images nor take their memory for a fault.
#[cfg(feature = "fuzzing")]
const MOST_PIXELS: usize = 1 << 22;
