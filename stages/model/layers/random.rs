//! Random initial values that are the same on every machine.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// `count` values, uniform in `-bound..bound`.
pub(crate) fn uniform(random: &mut ChaCha8Rng, count: usize, bound: f32) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-bound..bound)).collect()
}

/// FNV-1a, a stable hash; of a layer's name, so that each layer has a separate random stream.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
