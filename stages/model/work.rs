//! Forecasts the floating-point operations of a training step from sizes alone, and measures this machine's throughput.
//! Counts matrix products with weights, which take most of the time; ignores attention scores, norms and the optimizer.

use std::time::{Duration, Instant};

use crate::{
    family::{Input, Layer},
    memory::{MicroBatch, Training, Trains},
    tensor::{Graph, Mat, Weight, linear},
};

impl Training<'_> {
    /// Floating-point operations (a multiplication and an addition are two) of the forward and backward pass on
    /// `batch`, whose images all go through the encoder's blocks that train. Through the rest of it go `encoded` images: all, or
    /// fewer where features are kept or were read.
    pub fn operations(&self, batch: MicroBatch, encoded: usize) -> f64 {
        // Forward pass and input gradients; if the weights train, also weight gradients.
        let passes = if matches!(self.trains, Trains::All) { 3.0 } else { 2.0 };
        let family = self.llm.family;
        let blocks = family.block_layers().iter().map(|layer| {
            let passes = if self.gradient_checkpointing { passes + 1.0 } else { passes };
            self.layer_operations(layer, batch, passes)
        });
        let language = blocks.sum::<f64>() + self.layer_operations(family.head(), batch, passes);
        let projector = 3.0 * self.projector_trained() as f64 * (batch.images * self.vision.patches()) as f64;
        let trained = self.vision_trained();
        let frozen = self.vision.parameters().saturating_sub(trained);
        let vision =
            (frozen as f64 * encoded as f64 + 3.0 * trained as f64 * batch.images as f64) * self.vision.tokens() as f64;
        2.0 * (language + projector + vision)
    }

    /// Multiplications in a linear layer of all blocks, or in the output layer: with its weights, `passes` times, and its adapter.
    fn layer_operations(&self, layer: &Layer, batch: MicroBatch, passes: f64) -> f64 {
        let layers = self.llm.num_hidden_layers;
        let (all, rows) = match layer.part.input() {
            Input::AttentionNorm => (layers, layers * batch.rows),
            // In the last block, at labelled positions only.
            Input::Attended | Input::MlpNorm | Input::Inner => (layers, (layers - 1) * batch.rows + batch.learned),
            Input::FinalNorm => (1, batch.learned),
        };
        let (outputs, inputs, _) = self.llm.linear_shape(layer);
        let (rows, weights) = (rows as f64, outputs as f64 * inputs as f64);
        let adapter = match self.trains {
            Trains::Adapters { rank, dropout, dora, .. } if self.adapts(layer) => {
                let low_rank = 3.0 * rows * (rank * (outputs + inputs)) as f64;
                // With magnitudes, the norms of the adapted weights; with dropout, these weights are used a second time.
                let norms = if dora { (all * rank) as f64 * weights } else { 0.0 };
                let again = if dora && dropout { 2.0 * rows * weights } else { 0.0 };
                low_rank + norms + again
            }
            Trains::Adapters { .. } | Trains::Projector | Trains::All => 0.0,
        };
        passes * rows * weights + adapter
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
        let (block, head) = (78_643_200, 131_072_000);
        let batch = MicroBatch { rows: 1000, learned: 200, images: 0 };
        // Two operations per weight and row, for the forward pass, input gradients and weight gradients each. The last block has its
        // q, k and v at all positions, and the rest at labelled ones.
        let qkv = 3 * 2560 * 2560;
        let blocks = 2 * (1000 * (31 * block + qkv) + 200 * (block - qkv));
        let head = 2 * 200 * head;
        equal(training(&llm, Trains::All, false, batch), 3 * (blocks + head));
        equal(training(&llm, Trains::All, true, batch), 4 * blocks + 3 * head);
        equal(training(&llm, Trains::Projector, false, batch), 2 * (blocks + head));
        equal(training(&llm, Trains::Projector, true, batch), 3 * blocks + 2 * head);
        // Adapters of rank 8 on 32 q_proj and 32 v_proj.
        let targets = ["q_proj".to_string(), "v_proj".to_string()];
        let adapters = Trains::Adapters { rank: 8, dropout: false, dora: false, targets: &targets };
        let low = 3 * 2 * 1000 * 64 * 8 * (2560 + 2560);
        equal(training(&llm, adapters, false, batch), 2 * (blocks + head) + low);
        // With magnitudes also their norms, and, because of dropout, q_proj and v_proj forth and back again.
        let adapters = Trains::Adapters { rank: 8, dropout: true, dora: true, targets: &targets };
        let adapted = 64 * 2560 * 2560;
        let dora = 2 * (8 * adapted + 2 * 1000 * adapted);
        equal(training(&llm, adapters, false, batch), 2 * (blocks + head) + low + dora);
        // The projector has 1152 inputs, and trains.
        let with_image = training(&llm, Trains::Projector, false, MicroBatch { images: 1, ..batch });
        let projector = 3 * 2 * 729 * ((1152 + 1) * 2560 + (2560 + 1) * 2560);
        equal(with_image, 2 * (blocks + head) + projector);
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
