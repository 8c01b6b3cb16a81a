//! Memory that rounds use in turn: the same calls in the same order take the same pieces in each. Independent of what they are used for.

use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Pieces {
    /// By address.
    all: BTreeMap<u64, Piece>,
    /// The addresses of those that are free, by their bytes. The last one is taken first.
    free: BTreeMap<usize, Vec<u64>>,
}

struct Piece {
    bytes: usize,
    is_free: bool,
    /// In this round.
    was_taken: bool,
}

impl Pieces {
    /// Takes a free piece.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let address = self.free.get_mut(&bytes)?.pop()?;
        self.add(address, bytes);
        Some(address)
    }

    /// Adds a piece, which is taken.
    pub(super) fn add(&mut self, address: u64, bytes: usize) {
        self.all.insert(address, Piece { bytes, is_free: false, was_taken: true });
    }

    /// Frees a piece. False if none of these begins there.
    pub(super) fn give_back(&mut self, address: u64) -> bool {
        let Some(piece) = self.all.get_mut(&address) else { return false };
        piece.is_free = true;
        self.free.entry(piece.bytes).or_default().push(address);
        true
    }

    /// Removes all free pieces.
    pub(super) fn release(&mut self) -> Vec<(u64, usize)> {
        self.free.clear();
        self.all.extract_if(.., |_, piece| piece.is_free).map(|(address, piece)| (address, piece.bytes)).collect()
    }

    /// Ends a round: all that is free waits in the order of addresses. What is still in use belongs to its user from now on. Returns what
    /// was not taken in this round, which is no longer here.
    pub(super) fn settle(&mut self) -> Vec<(u64, usize)> {
        self.free.clear();
        let mut unused = Vec::new();
        for (address, Piece { bytes, is_free, was_taken }) in std::mem::take(&mut self.all) {
            if is_free && was_taken {
                self.all.insert(address, Piece { bytes, is_free, was_taken: false });
                self.free.entry(bytes).or_default().push(address);
            } else if is_free {
                unused.push((address, bytes));
            }
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_take_the_same_pieces() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.take(8), None);
        for address in [30, 10, 20] {
            pieces.add(address, 8);
        }
        for address in [20, 30, 10] {
            assert!(pieces.give_back(address));
        }
        assert_eq!(pieces.settle(), []);
        for _ in 0..3 {
            assert_eq!([8, 8, 4].map(|bytes| pieces.take(bytes)), [Some(30), Some(20), None]);
            assert!(pieces.give_back(30));
            assert_eq!(pieces.take(8), Some(30), "what was given back last");
            assert!(pieces.give_back(20) && pieces.give_back(30));
            // The first of these rounds finds out that two are enough.
            assert!([vec![(10, 8)], vec![]].contains(&pieces.settle()));
        }
        assert!(!pieces.give_back(10));
    }

    #[test]
    fn what_is_free_can_be_released() {
        let mut pieces = Pieces::default();
        pieces.add(10, 8);
        pieces.add(20, 8);
        assert!(pieces.give_back(20));
        assert_eq!(pieces.release(), [(20, 8)]);
        assert!(pieces.take(8).is_none() && pieces.give_back(10) && !pieces.give_back(20));
    }

    #[test]
    fn what_outlives_its_round_belongs_to_its_user() {
        let mut pieces = Pieces::default();
        pieces.add(10, 8);
        assert_eq!(pieces.settle(), []);
        assert!(!pieces.give_back(10));
        assert_eq!(pieces.take(8), None);
    }
}
