//! The learned positions of an encoder's class token and patches, and their interpolation for images of another size.

use crate::{
    config::VisionConfig,
    encoder::Encoder,
    error::Result,
    tensor::{Mat, Place},
    weights::{NamedTensor, TensorFiles},
};

/// The positions.
#[derive(Clone)]
pub(super) struct Positions {
    /// Of the patches of the images that they were learned on, `[patches, hidden]`, in host memory.
    learned: Mat,
    /// Number of these patches along a side.
    grid: usize,
    /// Of the class token, `[1, hidden]`.
    class: Option<Mat>,
    /// Of the patches of the images that are encoded, `[patches, hidden]`.
    patches: Mat,
}

impl Positions {
    /// Reads the table `name`, whose first row is the class token's if there is one.
    pub(super) fn load(from: &TensorFiles, name: &str, config: &VisionConfig) -> Result<Self> {
        let (grid, width) = (config.learned_grid(), config.hidden_size);
        let rows = usize::from(config.encoder.has_class()) + grid * grid;
        let table = match name.strip_suffix(".weight") {
            // It may be in 4 bits.
            Some(name) => from.table(name, rows, width)?,
            None => from.mat(name, &[1, rows, width], rows, width)?,
        };
        let values = table.to_host();
        let (first, others) = values.split_at(if config.encoder.has_class() { width } else { 0 });
        let class = (!first.is_empty()).then(|| Mat::from_host(1, width, first.to_vec()));
        let learned = Mat::from_host(others.len() / width, width, others.to_vec());
        let mut positions = Self { patches: learned.clone(), learned, grid, class };
        positions.resize(config);
        Ok(positions)
    }

    pub(super) fn move_to(&mut self, place: &Place) {
        for mat in self.class.iter_mut().chain([&mut self.patches]) {
            *mat = mat.to(place);
        }
    }

    /// Interpolates the learned positions for images of the configuration's size.
    pub(super) fn resize(&mut self, config: &VisionConfig) {
        let (from, to) = (self.grid, config.grid());
        if from == to {
            self.patches = self.learned.to(&self.patches.place());
            return;
        }
        let (width, learned) = (config.hidden_size, self.learned.to_host());
        let taps: Vec<_> = (0..to).map(|index| cubic_taps(index, from, to, antialiases(config.encoder))).collect();
        let mut values = Vec::with_capacity(to * to * width);
        for (row, col) in (0..to * to).map(|index| (index / to, index % to)) {
            for channel in 0..width {
                let position = |y: usize, x: usize| learned[(y * from + x) * width + channel];
                let line = |y: usize| taps[col].iter().map(|(x, weight)| weight * position(y, *x)).sum::<f32>();
                values.push(taps[row].iter().map(|(y, weight)| weight * line(*y)).sum());
            }
        }
        self.patches = Mat::from_host(to * to, width, values).to(&self.patches.place());
    }

    pub(super) fn of_patches(&self) -> &Mat {
        &self.patches
    }

    pub(super) fn of_class(&self) -> Option<&Mat> {
        self.class.as_ref()
    }

    /// The table as a file has it, for the images that are encoded.
    pub(super) fn tensor(&self, name: String, config: &VisionConfig) -> NamedTensor<'_> {
        let axes = if name.ends_with(".weight") { 2 } else { 3 };
        let rows = self.class.as_ref().map_or(0, Mat::rows) + self.patches.rows();
        NamedTensor::new(name, axes_of(axes, rows, config.hidden_size), move || {
            let class = self.class.iter().flat_map(|class| class.to_host().into_owned());
            class.chain(self.patches.to_host().iter().copied()).collect()
        })
    }
}

/// The shape `[rows, width]` behind as many axes of length 1 as there are to be; a vector with one axis.
pub(super) fn axes_of(axes: usize, rows: usize, width: usize) -> Vec<usize> {
    let mut shape = vec![1; axes.saturating_sub(2)];
    shape.extend([rows, width].into_iter().skip(usize::from(axes == 1)));
    shape
}

/// Whether transformers widens the kernel where there are fewer positions than were learned.
fn antialiases(encoder: Encoder) -> bool {
    encoder == Encoder::Dinov2WithRegisters
}

/// The points of a line of `from` points, with weights, that interpolate point `index` of a line of `to` points with aligned pixel
/// centres: cubic convolution (Keys 1981) as in PyTorch's `interpolate`. Without antialiasing a = -0.75, and edges are repeated;
/// with it a = -0.5, the kernel is widened where points become fewer, and what lies beyond the edges is left out.
fn cubic_taps(index: usize, from: usize, to: usize, antialias: bool) -> Vec<(usize, f32)> {
    let scale = from as f32 / to as f32;
    let last = (from - 1) as f32;
    if antialias {
        let stretch = scale.max(1.0);
        let centre = (index as f32 + 0.5) * scale;
        let first = (centre - 2.0 * stretch + 0.5).max(0.0) as usize;
        let end = ((centre + 2.0 * stretch + 0.5) as usize).min(from);
        let weights: Vec<f32> =
            (first..end).map(|point| cubic((point as f32 - centre + 0.5) / stretch, -0.5)).collect();
        let sum: f32 = weights.iter().sum();
        return (first..end).zip(weights.into_iter().map(|weight| weight / sum)).collect();
    }
    let centre = (index as f32 + 0.5) * scale - 0.5;
    let first = centre.floor();
    let tap = |offset: f32| ((first + offset).clamp(0.0, last) as usize, cubic(centre - first - offset, -0.75));
    [-1.0, 0.0, 1.0, 2.0].map(tap).to_vec()
}

/// Keys' kernel at the distance `x`.
fn cubic(x: f32, a: f32) -> f32 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}
