//! Vision encoders.

mod siglip;

pub use siglip::Siglip;
