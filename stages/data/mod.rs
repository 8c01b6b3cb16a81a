//! Training data: record sets, as `preprocess` writes and training reads them.
//! Independent of annotation formats, batches and models.

pub(crate) mod features;
pub mod mixture;
pub(crate) mod mmap;
pub mod records;
pub(crate) mod share;
pub(crate) mod writer;
