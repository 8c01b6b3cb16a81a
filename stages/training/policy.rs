//! How a batch is cut into parts and whether the backward pass recomputes blocks, chosen for the device unless the pipeline says
//! so. Affects the result by the order of sums only.

use imp_model::{
    Precision,
    config::LanguageConfig,
    memory::{MicroBatch, Training},
};

use crate::contract::job::Runtime;

/// Samples that go through a model at once on the CPU, and at most on a GPU.
const MICRO_BATCH: usize = 16;
/// The same in one pass of a small model on the CPU, of which several then run at the same time.
const SMALL_MICRO_BATCH: usize = 2;
/// Up to this many weights a model is small: with its operations shared out, threads would wait for each other for a good part of
/// the time.
const SMALL: usize = 1 << 24;
/// The same for large models on the CPU.
const LARGE_MICRO_BATCH: usize = 1;
/// From this many weights on a model is large: on the CPU its blocks are recomputed in the backward pass.
const LARGE: usize = 1_000_000_000;
/// Positions from which on a GPU is assumed to gain little by more of them at once; not measured yet.
const ENOUGH: usize = 2048;

/// How a batch is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Samples in a part.
    pub(super) size: usize,
    /// Parts that may be computed at the same time.
    pub(super) at_once: usize,
    /// Whether the backward pass recomputes the blocks of the language model.
    pub(super) recompute: bool,
}

/// The memory of a GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Card {
    /// All of it, in bytes.
    pub(super) total: u64,
    /// What the frozen weights and the features take.
    pub(super) frozen: u64,
    /// In which activations are stored.
    pub(super) precision: Precision,
}

impl Cut {
    /// For the CPU with so many threads: by the size of the model. The threads have a say only in how many parts are computed at the
    /// same time.
    pub(super) fn on_cpu(runtime: &Runtime, llm: &LanguageConfig, batch: usize, threads: usize) -> Self {
        let (small, large) = (llm.parameters() <= SMALL, llm.parameters() >= LARGE);
        let size = match runtime.micro_batch_size {
            0 if small => SMALL_MICRO_BATCH,
            0 if large => LARGE_MICRO_BATCH,
            0 => MICRO_BATCH,
            size => size,
        };
        let size = size.min(batch.max(1));
        let at_once = if small { threads.min(MICRO_BATCH / size).min(batch.div_ceil(size)).max(1) } else { 1 };
        Self { size, at_once, recompute: runtime.gradient_checkpointing.unwrap_or(large) }
    }

    /// For a GPU: what should be fastest of what fits, with a tenth of its memory to spare. Keeping activations saves the second
    /// forward pass, of four passes' work; parts need only be large enough to fill the GPU. `largest` gives the largest part of
    /// a size.
    pub(super) fn on_card(
        runtime: &Runtime,
        training: &Training<'_>,
        batch: usize,
        card: Card,
        largest: impl Fn(usize) -> MicroBatch,
    ) -> Self {
        let sizes: Vec<(usize, MicroBatch)> = sizes(runtime, batch).map(|size| (size, largest(size))).collect();
        let fills = |rows: usize| rows >= ENOUGH.min(sizes.first().map_or(0, |(_, part)| part.rows));
        let (large, small): (Vec<_>, Vec<_>) = sizes.iter().copied().partition(|(_, part)| fills(part.rows));
        let choices = runtime.gradient_checkpointing.map_or_else(|| vec![false, true], |given| vec![given]);
        let mut cuts: Vec<(Self, MicroBatch)> = Vec::new();
        for sizes in [large, small] {
            for recompute in &choices {
                cuts.extend(
                    sizes.iter().map(|(size, part)| (Self { size: *size, at_once: 1, recompute: *recompute }, *part)),
                );
            }
        }
        let fits = |(cut, part): &&(Self, MicroBatch)| {
            let training = Training { gradient_checkpointing: cut.recompute, ..*training };
            let step = training.device_memory(*part, batch > cut.size, card.precision).total() as u64;
            step.saturating_add(card.frozen) <= card.total / 10 * 9
        };
        // What takes the least memory is last. If that does not fit either, the step says so.
        let chosen = cuts.iter().find(fits).or(cuts.last());
        chosen.map_or(Self { size: 1, at_once: 1, recompute: true }, |(cut, _)| *cut)
    }
}

/// The sizes of parts from which to choose, the largest first.
fn sizes(runtime: &Runtime, batch: usize) -> impl Iterator<Item = usize> {
    let (most, least) = match runtime.micro_batch_size {
        0 => (MICRO_BATCH.min(batch.max(1)), 1),
        size => (size.min(batch.max(1)), size.min(batch.max(1))),
    };
    std::iter::successors(Some(most), |size| Some(size / 2)).take_while(move |size| *size >= least)
}

#[cfg(test)]
mod tests {
    use imp_model::{
        config::{ProjectorType, VisionConfig},
        memory::Trains,
    };

    use super::*;

    const GB: u64 = 1_000_000_000;

    /// The choice for LoRA of Phi-2 with 1,000 positions a sample.
    fn chosen(gigabytes: u64, runtime: &Runtime) -> Cut {
        let (llm, vision) = (LanguageConfig::phi(51_200, 2560, 32, 32, 80), VisionConfig::so400m_patch14_384());
        let training = Training {
            llm: &llm,
            vision: &vision,
            projector: ProjectorType::Mlp(2),
            trains: Trains::Adapters { rank: 256, dropout: true, dora: false, targets: &[] },
            vision_layers: 0,
            gradient_checkpointing: false,
        };
        let card = Card { total: gigabytes * GB, frozen: 6 * GB, precision: Precision::Bf16 };
        Cut::on_card(runtime, &training, 128, card, |size| MicroBatch {
            rows: 1000 * size,
            learned: 100 * size,
            images: size,
        })
    }

    #[test]
    fn what_is_fastest_of_what_fits() {
        let automatic = Runtime::default();
        let cuts: Vec<Cut> = [10_000, 80, 40, 24, 1].map(|gigabytes| chosen(gigabytes, &automatic)).to_vec();
        assert_eq!(cuts[0], Cut { size: 16, at_once: 1, recompute: false });
        assert_eq!(
            cuts[4],
            Cut { size: 1, at_once: 1, recompute: true },
            "the least, whose failure names the remedies"
        );
        for pair in cuts.windows(2) {
            let rank = |cut: &Cut| (!cut.recompute, cut.size);
            assert!(rank(&pair[0]) >= rank(&pair[1]), "less memory, less at once: {cuts:?}");
        }
        assert!(cuts[1].size >= 2 && cuts[2].size >= 2, "enough to fill the GPU: {cuts:?}");
    }

    #[test]
    fn what_the_pipeline_says_is_done() {
        let given = Runtime { micro_batch_size: 3, gradient_checkpointing: Some(true), ..Runtime::default() };
        assert_eq!(chosen(10_000, &given), Cut { size: 3, at_once: 1, recompute: true });
        let llm = LanguageConfig::phi(100, 64, 2, 2, 8);
        assert_eq!(Cut::on_cpu(&given, &llm, 2, 4), Cut { size: 2, at_once: 1, recompute: true });
        assert_eq!(Cut::on_cpu(&given, &llm, 64, 64), Cut { size: 3, at_once: 5, recompute: true });
    }

    #[test]
    fn parts_of_small_models_run_at_the_same_time_on_the_cpu() {
        let automatic = Runtime::default();
        let small = LanguageConfig::phi(100, 64, 2, 2, 8);
        let of = |threads: usize, batch: usize| Cut::on_cpu(&automatic, &small, batch, threads);
        assert_eq!(of(1, 8), Cut { size: 2, at_once: 1, recompute: false });
        assert_eq!(of(2, 8), Cut { size: 2, at_once: 2, recompute: false });
        assert_eq!(of(64, 8).at_once, 4, "no more than there are");
        assert_eq!(of(64, 128).at_once, 8, "no more samples than elsewhere");
        assert_eq!(of(64, 1), Cut { size: 1, at_once: 1, recompute: false });
        let medium = LanguageConfig::phi(51_200, 512, 8, 8, 32);
        assert_eq!(Cut::on_cpu(&automatic, &medium, 64, 8), Cut { size: 16, at_once: 1, recompute: false });
        let large = LanguageConfig::phi(51_200, 2560, 32, 32, 32);
        assert_eq!(Cut::on_cpu(&automatic, &large, 64, 8), Cut { size: 1, at_once: 1, recompute: true });
    }
}
