//! The processor: its name, its threads, and the instructions that the model's numerics can use. Independent of what is computed.

use std::collections::BTreeMap;

pub use imp_model::tensor::Native;
use imp_model::tensor::native;

use crate::contract::device::{Device, Environment};

/// The instruction for products of bf16.
const AVX512_BF16: &str = "AVX512-BF16";

/// The processor of this machine.
#[derive(Debug, Clone)]
pub struct Cpu {
    /// Its name, if the system says it.
    pub model: Option<String>,
    /// Its threads that this process may use.
    pub threads: usize,
    /// Instructions for vectors, the widest last.
    pub features: Vec<Feature>,
    /// Whether it multiplies bf16 by itself.
    pub bf16: Native,
}

/// A set of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Its name, as its maker writes it.
    pub name: &'static str,
    /// Whether this processor has it.
    pub found: bool,
}

impl Cpu {
    /// Asks the system and the processor.
    pub fn detect() -> Self {
        Self {
            model: std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| model(&text)),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            features: features().into_iter().map(|(name, found)| Feature { name, found }).collect(),
            bf16: native(),
        }
    }

    /// The names of the instructions that it has.
    pub fn found(&self) -> impl Iterator<Item = &'static str> {
        self.features.iter().filter(|feature| feature.found).map(|feature| feature.name)
    }

    /// What is recorded of it. The widest instructions that it computes with are named, because sums in another order round
    /// differently.
    pub(super) fn environment(&self) -> Environment {
        let model = self.model.as_deref().unwrap_or(std::env::consts::ARCH);
        let widest = self.found().filter(|name| *name != AVX512_BF16 || self.bf16 == Native::Yes).last();
        let name = std::iter::once(model).chain(widest).collect::<Vec<_>>().join(", ");
        Environment { device: Device::Cpu, name, driver: None, libraries: BTreeMap::new() }
    }
}

/// The name in the text of `/proc/cpuinfo`. Processors of ARM have none there.
fn model(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    let name = line.trim_start().strip_prefix(':')?.trim();
    (!name.is_empty()).then(|| name.into())
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("AVX2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
        (AVX512_BF16, matches!(native(), Native::Yes | Native::Slow)),
    ]
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected;
    vec![("NEON", is_aarch64_feature_detected!("neon")), ("BF16", is_aarch64_feature_detected!("bf16"))]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_and_the_widest_vectors_are_recorded() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t: avx2\n\nmodel name\t: another";
        assert_eq!(model(text).as_deref(), Some("AMD EPYC 9B14"));
        assert_eq!(model("processor\t: 0\nmodel name\t: \n"), None);
        for (bf16, widest) in [(Native::No, "AVX-512"), (Native::Slow, "AVX-512"), (Native::Yes, AVX512_BF16)] {
            let features = [("AVX2", true), ("AVX-512", true), (AVX512_BF16, bf16 != Native::No)];
            let features = features.map(|(name, found)| Feature { name, found }).to_vec();
            let cpu = Cpu { model: model(text), threads: 2, features, bf16 };
            assert_eq!(cpu.environment().to_string(), format!("CPU: AMD EPYC 9B14, {widest}"));
        }
        assert!(Cpu::detect().threads > 0);
    }
}
