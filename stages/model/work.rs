//! Forecasts the floating-point operations of a training step from sizes alone, and measures this machine's throughput.
//! Counts matrix products with weights, which take most of the time; ignores attention scores, norms and the optimizer.

use std::time::{Duration, Instant};

use crate::{
    family::Layer,
    memory::{MicroBatch, Training, Trains},
    tensor::{Graph, Mat, Weight, linear},
};

impl Training<'_> {
    /// Floating-point operations (a multiplication and an addition are two) of the forward and backward pass on
    /// `batch`, whose images all go through the encoder's blocks that train. Through the rest of it go `encoded` images: all, or
    /// fewer where features are kept or were read.
    pub fn operations(&self, batch: MicroBatch, encoded: usize) -> f64 {
        let weights = |layers: &[Layer]| -> f64 {
            let shapes = layers.iter().map(|layer| self.llm.linear_shape(layer));
            shapes.map(|(outputs, inputs, _)| outputs as f64 * inputs as f64).sum()
        };
        let family = self.llm.family;
        let blocks = self.llm.num_hidden_layers as f64 * weights(family.block_layers()) * batch.rows as f64;
        // Logits are computed at labelled positions only.
        let head = weights(&[*family.head()]) * batch.learned as f64;
        // Forward pass and input gradients; if the weights train, also weight gradients.
        let passes = if matches!(self.trains, Trains::All) { 3.0 } else { 2.0 };
        let recomputed = if self.gradient_checkpointing { blocks } else { 0.0 };
        let adapters = match self.trains {
            Trains::Adapters { .. } => 3.0 * (self.trained() - self.vision_trained()) as f64 * batch.rows as f64,
            Trains::Projector | Trains::All => 0.0,
        };
        let adapted =
            |layers: &[Layer]| weights(&layers.iter().copied().filter(|layer| self.adapts(layer)).collect::<Vec<_>>());
        let dora = match self.trains {
            // The norms of adapted weights; with dropout, these weights are used a second time.
            Trains::Adapters { rank, dropout, dora: true, .. } => {
                let layers = self.llm.num_hidden_layers as f64;
                let (blocks, head) = (layers * adapted(family.block_layers()), adapted(&[*family.head()]));
                let again =
                    if dropout { 2.0 * (blocks * batch.rows as f64 + head * batch.learned as f64) } else { 0.0 };
                rank as f64 * (blocks + head) + again
            }
            Trains::Adapters { .. } | Trains::Projector | Trains::All => 0.0,
        };
        let trained = self.vision_trained();
        let frozen = self.vision.parameters().saturating_sub(trained);
        let vision =
            (frozen as f64 * encoded as f64 + 3.0 * trained as f64 * batch.images as f64) * self.vision.tokens() as f64;
        2.0 * (passes * (blocks + head) + recomputed + adapters + dora + vision)
    }
}

/// Floating-point operations per second on all threads, measured with a matrix product of a size typical for training.
pub fn rate() -> f64 {
    const ROWS: usize = 512;
    const WIDTH: usize = 1024;
    /// Long enough for the processor to reach its full clock rate, short enough not to delay the user.
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
    use super::*;
    use crate::{
        config::{Family, LanguageConfig, ProjectorType, VisionConfig},
        tensor::Activation,
    };

    fn training(llm: &LanguageConfig, trains: Trains<'_>, gradient_checkpointing: bool, batch: MicroBatch) -> f64 {
        let vision = VisionConfig::so400m_patch14_384();
        let projector = ProjectorType::Mlp(2);
        Training { llm, vision: &vision, projector, trains, vision_layers: 0, gradient_checkpointing }
            .operations(batch, 0)
    }

    /// Exact: all counts here are integers below 2^53.
    fn equal(operations: f64, expected: u64) {
        assert_eq!(operations as u64, expected);
    }

    fn phi_2() -> LanguageConfig {
        LanguageConfig::phi(51_200, 2560, 32, 32, 32)
    }

    #[test]
    fn a_step_of_phi_2() {
        let llm = phi_2();
        assert_eq!(llm.parameters(), 2_779_683_840, "as published");
        // Weights in products: all but the embedding, norms and biases.
        let (blocks, head) = (2_516_582_400, 131_072_000);
        let batch = MicroBatch { rows: 1000, learned: 200, images: 1 };
        // Two operations per weight and row, for the forward pass, input gradients and weight gradients each.
        let (blocks, head) = (2 * 1000 * blocks, 2 * 200 * head);
        equal(training(&llm, Trains::All, false, batch), 3 * (blocks + head));
        equal(training(&llm, Trains::All, true, batch), 4 * blocks + 3 * head);
        equal(training(&llm, Trains::Projector, false, batch), 2 * (blocks + head));
        equal(training(&llm, Trains::Projector, true, batch), 3 * blocks + 2 * head);
        // Adapters of rank 8 on 32 q_proj and 32 v_proj; the projector has 1152 inputs.
        let targets = ["q_proj".to_string(), "v_proj".to_string()];
        let adapters = Trains::Adapters { rank: 8, dropout: false, dora: false, targets: &targets };
        let trained = 64 * 8 * (2560 + 2560) + (1152 + 1) * 2560 + (2560 + 1) * 2560;
        equal(training(&llm, adapters, false, batch), 2 * (blocks + head) + 3 * 2 * 1000 * trained);
        // With magnitudes also their norms, and, because of dropout, q_proj and v_proj forth and back again.
        let adapters = Trains::Adapters { rank: 8, dropout: true, dora: true, targets: &targets };
        let (adapted, trained) = (64 * 2560 * 2560, trained + 64 * 2560);
        let dora = 2 * (8 * adapted + 2 * 1000 * adapted);
        equal(training(&llm, adapters, false, batch), 2 * (blocks + head) + 3 * 2 * 1000 * trained + dora);
    }

    #[test]
    fn gated_mlps_and_grouped_queries() {
        let batch = MicroBatch { rows: 10, learned: 10, images: 0 };
        for family in [Family::Qwen2, Family::Llama, Family::Phi3] {
            let llm = LanguageConfig {
                intermediate_size: 100,
                num_key_value_heads: 2,
                hidden_act: Activation::Silu,
                ..LanguageConfig::new(family, 50, 64, 3, 8)
            };
            // q and o, k and v with a quarter of the heads, gate, up and down.
            let block = 2 * 64 * 64 + 2 * 16 * 64 + 3 * 100 * 64;
            equal(training(&llm, Trains::All, false, batch), 6 * 10 * (3 * block + 50 * 64));
        }
    }

    #[test]
    fn the_vision_encoder_adds_its_forward_pass() {
        let (llm, vision) = (phi_2(), VisionConfig::so400m_patch14_384());
        let training = Training {
            llm: &llm,
            vision: &vision,
            projector: ProjectorType::Mlp(2),
            trains: Trains::Projector,
            vision_layers: 0,
            gradient_checkpointing: false,
        };
        let batch = MicroBatch { rows: 1000, learned: 200, images: 3 };
        let added = training.operations(batch, 3) - training.operations(batch, 0);
        equal(added, 2 * vision.parameters() as u64 * 3 * 729);
    }

    #[test]
    fn blocks_of_the_encoder_that_train_run_on_every_image() {
        let (llm, vision) = (phi_2(), VisionConfig::so400m_patch14_384());
        let batch = MicroBatch { rows: 1000, learned: 200, images: 3 };
        // A block of 1152 values a token, 4304 within its MLP: matrices, biases and two norms.
        let block = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152;
        for trains in
            [Trains::Projector, Trains::Adapters { rank: 8, dropout: false, dora: false, targets: &[] }, Trains::All]
        {
            let of = |vision_layers: usize, encoded: usize| {
                let projector = ProjectorType::Mlp(2);
                Training { llm: &llm, vision: &vision, projector, trains, vision_layers, gradient_checkpointing: false }
                    .operations(batch, encoded)
            };
            // Forth, back, and for the weights; however many images the frozen blocks have encoded.
            equal(of(2, 0) - of(0, 0), 3 * 2 * 2 * block * 3 * 729);
            equal(of(2, 1) - of(2, 0), 2 * (vision.parameters() as u64 - 2 * block) * 729);
        }
    }
}
