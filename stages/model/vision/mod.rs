//! Vision encoders.

mod positions;
mod tower;

pub use tower::VisionTower;
