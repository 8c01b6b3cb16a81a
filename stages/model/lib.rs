//! The Imp network and its numerics: a SigLIP vision encoder, an MLP projector and a small language model
//! with LoRA (arXiv 2405.12107). Knows nothing of pipelines, stages or processes.
//!
//! Load a model with [`Imp::load`], turn images into features with [`Imp::encode_images`], get the loss of a
//! batch with [`Imp::loss`], answers with [`Imp::generate`], and write it with the functions of [`save`].

pub mod config;
pub mod error;
mod generate;
mod imp;
pub mod init;
pub mod language;
pub mod layers;
mod load;
pub mod optim;
pub mod peft;
pub mod projector;
pub mod quant;
pub mod save;
pub mod schedule;
mod splice;
pub mod tensor;
pub mod vision;
pub mod weights;

pub use error::{ModelError, Result};
pub use generate::{GenerateOptions, Sampling, StopStrings};
pub use imp::{Imp, Step};
pub use load::{Parts, load_language, load_vision};
pub use splice::{IMAGE_TOKEN, Padded, Sample, Side, Spliced, images_in_order};
