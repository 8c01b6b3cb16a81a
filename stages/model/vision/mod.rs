//! Vision encoders.

mod block;
mod positions;
mod tower;

pub use tower::{VisionTower, check_trained};
