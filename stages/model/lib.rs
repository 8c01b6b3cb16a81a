//! The Imp network and its numerics: a vision encoder (SigLIP, CLIP, `DINOv2`), an MLP projector and a small language model
//! with LoRA (Imp, arXiv 2405.12107). Independent of pipelines, stages and processes.
//!
//! [`Imp::load`] reads a model folder, [`Imp::assemble`] joins a language model and a vision encoder,
//! [`Imp::encode_images`] computes image features, [`Imp::forward`] computes logits, [`Imp::loss_and_gradients`] and
//! [`optim::Optimizer`] train, [`Imp::generate`] and [`Imp::stream`] generate answers, [`Imp::continue_from`] reads on in a
//! [`Context`], and [`save`] writes models.
//! `examples/tiny.rs` does all of this.
//!
//! ```no_run
//! use imp_model::{GenerateOptions, IMAGE_TOKEN, Imp, Sample};
//!
//! let model = Imp::load("imp-v1-3b".as_ref())?;
//! let image = vec![0.0_f32; 3 * 384 * 384]; // [3, size, size], values in [-1, 1]
//! let features = model.encode_images(&[image]); // [729, 1152]
//! let prompt = Sample { input_ids: &[IMAGE_TOKEN, 2061, 318, 428, 30], labels: &[], images: &[0] };
//! let options = GenerateOptions { max_new_tokens: 64, stop: vec![50295], ..GenerateOptions::default() };
//! let answers: Vec<Vec<u32>> = model.generate(&[prompt], &features, &options)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to find a formula: networks in [`language`] and [`vision`]; the image splice in [`Imp::splice`]; LoRA in
//! [`layers`]; norms, attention, rotary position embeddings, activations, the loss and `AdamW` in [`tensor`];
//! learning-rate schedules in [`schedule`]; nucleus sampling in [`Sampling`]; f16, bf16, 4-bit and 8-bit weights in
//! [`encoding`].

#![warn(clippy::missing_errors_doc)]

pub mod config;
mod encoder;
pub mod encoding;
pub mod error;
pub mod family;
mod generate;
pub mod gguf;
mod images;
mod imp;
pub mod init;
pub mod language;
pub mod layers;
pub mod llava;
mod load;
pub mod memory;
pub mod mlc;
mod mmap;
pub mod optim;
pub mod peft;
mod precision;
pub mod projector;
pub mod quant;
mod rope;
mod sample;
pub mod save;
pub mod schedule;
mod simd;
mod splice;
pub mod tensor;
pub mod vision;
pub mod weights;
pub mod work;

pub use error::{ModelError, Result};
pub use generate::{Context, GenerateOptions, NotANumber, Sampling, StopStrings};
pub use imp::Imp;
pub use load::{Components, load_language, load_vision, projector_in};
pub use precision::Precision;
pub use sample::{IMAGE_TOKEN, Padded, Sample, Side, Spliced, images_in_order};
