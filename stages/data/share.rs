//! When lost records matter. Independent of why they were lost.

/// The share of all records from which on a loss is told with every use of the result.
const CAUTION: f64 = 0.01;

/// Whether `count` of `all` are worth a warning that stays with the result.
pub(crate) fn worth_a_caution(count: usize, all: usize) -> bool {
    count > 0 && count as f64 >= CAUTION * all as f64
}
