//! How images become an encoder's pixel values: what its `preprocessor_config.json` says. Plain data; `imp-stages` does it.

/// How images become pixel values: resized, perhaps cropped, and normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Mean of each channel, of values from 0 to 1.
    pub mean: [f64; 3],
    /// What each channel is divided by.
    pub std: [f64; 3],
    /// How pixels are interpolated.
    pub filter: Filter,
    /// How an image becomes a square.
    pub fit: Fit,
}

/// How pixels are interpolated, as in Pillow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A triangle.
    Bilinear,
    /// Cubic convolution (Keys 1981), a = -0.5.
    Bicubic,
}

/// How an image becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is stretched.
    Stretch,
    /// Its shorter edge is resized to `edge`, and a square of `side` in the middle is kept. Images of another size keep the ratio
    /// of the two.
    Crop {
        /// Length of the shorter edge in pixels.
        edge: usize,
        /// Side of the square in pixels.
        side: usize,
    },
}

impl Fit {
    /// The same for images of `size` pixels.
    #[must_use]
    pub fn of(self, size: usize) -> Self {
        match self {
            Self::Stretch => Self::Stretch,
            Self::Crop { .. } => Self::Crop { edge: self.edge(size), side: size },
        }
    }

    /// Length of the shorter edge before a square of `size` pixels is cut out of the image.
    pub fn edge(self, size: usize) -> usize {
        match self {
            Self::Stretch => size,
            Self::Crop { edge, side } => (size * edge).div_ceil(side.max(1)),
        }
    }
}
