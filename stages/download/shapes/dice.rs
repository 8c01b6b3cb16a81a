//! Random choices that are the same on every machine and with every version of the libraries.
//! Independent of what is chosen.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// A stream of random choices.
pub(super) struct Dice {
    random: ChaCha8Rng,
}

impl Dice {
    /// Stream `number` for `purpose`. Streams are independent, so images and questions don't affect each other.
    pub(super) fn new(seed: u64, purpose: u64, number: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ purpose.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        random.set_stream(number as u64);
        Self { random }
    }

    /// A number from 0 to `bound` - 1.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.random.next_u64() % bound.max(1) as u64) as usize
    }

    /// A number from -`reach` to `reach`.
    pub(super) fn around(&mut self, reach: i32) -> i32 {
        self.below(2 * reach as usize + 1) as i32 - reach
    }

    pub(super) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// One of `items`, which must not be empty.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// One of `items`; `None` if there are none.
    pub(super) fn maybe<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        items.get(self.below(items.len())).copied()
    }

    /// The Fisher-Yates shuffle.
    pub(super) fn shuffled<T>(&mut self, items: impl IntoIterator<Item = T>) -> Vec<T> {
        let mut items: Vec<T> = items.into_iter().collect();
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
        items
    }
}
