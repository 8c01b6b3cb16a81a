//! How many operations a training step takes, from sizes alone, and how many this machine does in a second. Counts the
//! products with weights, which take most of the time; leaves out attention scores, norms and the optimizer.

use std::time::{Duration, Instant};

use crate::{
    language::Layer,
    memory::{MicroBatch, Training, Trains},
    tensor::{Graph, Mat, Weight, linear},
};

impl Training<'_> {
    /// Multiplications and additions, each counted as one, of the forward and backward pass on `batch`. `encodes`: whether
    /// the vision encoder also runs.
    pub fn operations(&self, batch: MicroBatch, encodes: bool) -> f64 {
        let weights = |layers: &[Layer]| -> f64 {
            let shapes = layers.iter().map(|layer| self.llm.linear_shape(layer));
            shapes.map(|(outputs, inputs, _)| outputs as f64 * inputs as f64).sum()
        };
        let family = self.llm.family;
        let blocks = self.llm.num_hidden_layers as f64 * weights(family.block_layers()) * batch.rows as f64;
        // Logits are computed where there is a label.
        let head = weights(&[*family.head()]) * batch.learned as f64;
        // Forward, gradients of inputs, gradients of weights.
        let passes = if matches!(self.trains, Trains::All) { 3.0 } else { 2.0 };
        let again = if self.gradient_checkpointing { blocks } else { 0.0 };
        let adapters = match self.trains {
            Trains::Adapters { .. } => 3.0 * self.trained() as f64 * batch.rows as f64,
            Trains::Projector | Trains::All => 0.0,
        };
        let patches = (batch.images * self.vision.patches()) as f64;
        let vision = if encodes { self.vision.parameters() as f64 * patches } else { 0.0 };
        2.0 * (passes * (blocks + head) + again + adapters + vision)
    }
}

/// Multiplications and additions per second, measured on a product of the size that training has, on all threads.
pub fn rate() -> f64 {
    const ROWS: usize = 512;
    const WIDTH: usize = 1024;
    /// Long enough for the processor to reach its full clock, short enough for a user who waits.
    const TIME: Duration = Duration::from_millis(150);
    let x = Mat::from_host(ROWS, WIDTH, vec![0.5; ROWS * WIDTH]);
    let weight = Weight::Dense(Mat::from_host(WIDTH, WIDTH, vec![0.5; WIDTH * WIDTH]));
    let product = || {
        let start = Instant::now();
        let y = linear(&Graph::inference(), &x, &weight, None);
        (y.rows(), start.elapsed().as_secs_f64())
    };
    let start = Instant::now();
    let mut fastest = f64::INFINITY;
    while start.elapsed() < TIME {
        fastest = fastest.min(product().1);
    }
    (2 * ROWS * WIDTH * WIDTH) as f64 / fastest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{ConfigFile, ProjectorType, SiglipConfig};

    #[test]
    fn a_step_of_phi_2_is_what_its_sizes_say() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/phi/base_llm");
        let mut llm = ConfigFile::read(&folder).and_then(|file| file.language()).unwrap();
        (llm.hidden_size, llm.intermediate_size, llm.num_hidden_layers) = (2560, 10_240, 32);
        (llm.num_attention_heads, llm.num_key_value_heads, llm.head_dim) = (32, 32, 80);
        llm.vocab_size = 51_200;
        let folder = folder.with_file_name("siglip");
        let vision: SiglipConfig = ConfigFile::read(&folder).and_then(|file| file.siglip()).unwrap();
        let batch = MicroBatch { rows: 1000, learned: 200, images: 1 };
        let training = |trains, gradient_checkpointing| Training {
            llm: &llm,
            vision: &vision,
            projector: ProjectorType::Mlp(2),
            trains,
            gradient_checkpointing,
        };
        // 32 blocks of four square products and two of the MLP, on 1000 rows; the head on 200.
        let blocks = 32.0 * (4.0 * 2560.0 * 2560.0 + 2.0 * 2560.0 * 10_240.0) * 1000.0;
        let head = 2560.0 * 51_200.0 * 200.0;
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
        close(training(Trains::Projector, false).operations(batch, false), 4.0 * (blocks + head));
        close(training(Trains::Projector, true).operations(batch, false), 6.0 * blocks + 4.0 * head);
        close(training(Trains::All, false).operations(batch, false), 6.0 * (blocks + head));
        let encoded = training(Trains::Projector, false).operations(batch, true) - 4.0 * (blocks + head);
        close(encoded, 2.0 * (vision.parameters() * vision.patches()) as f64);
    }
}
