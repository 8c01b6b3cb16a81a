//! Checkpoint files, for `crate::fuzzing`.

use std::{cell::RefCell, fs};

use imp_model::{
    Imp,
    config::{ImpConfig, LanguageConfig, VisionConfig},
    encoding::Encoding,
    init,
    optim::Optimizer,
    tensor::AdamW,
};

use super::{
    checkpoint::{Replica, read},
    digest::digest,
};
use crate::scratch::Scratch;

/// A checkpoint of a tiny model whose projector trains. Its name is that of an intact file, whatever is in it.
pub(crate) fn checkpoint(bytes: &[u8]) {
    thread_local! {
        static TRAINING: RefCell<Option<Imp>> = RefCell::new(tiny());
    }
    let scratch = Scratch::with("new", bytes);
    let Ok(digest) = digest(&scratch.path("new")) else { return };
    let path = scratch.path(&format!("step-000000001-{digest}.safetensors"));
    if fs::rename(scratch.path("new"), &path).is_err() {
        return;
    }
    TRAINING.with_borrow_mut(|training| {
        if let Some(model) = training {
            let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
            let optimizer = Optimizer::new(model, settings, 1.0);
            let mut replicas = [&mut Replica { model, optimizer }];
            if let Ok(saved) = read(&path, &replicas, |_| true) {
                let _ = saved.restore(&mut replicas);
            }
        }
    });
}

fn tiny() -> Option<Imp> {
    let scratch = Scratch::with("llm/x", &[]);
    let (llm, vision) = (scratch.path("llm"), scratch.path("vision"));
    fs::create_dir_all(&vision).ok()?;
    init::write_language(&llm, &LanguageConfig::phi(8, 4, 1, 1, 2), 1, Encoding::F32).ok()?;
    let sizes = VisionConfig {
        hidden_size: 4,
        intermediate_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        image_size: 4,
        patch_size: 4,
        ..VisionConfig::so400m_patch14_384()
    };
    init::write_vision(&vision, &sizes, 1).ok()?;
    let mut model =
        Imp::assemble(&llm, &vision, ImpConfig { mm_vision_select_layer: -1, ..ImpConfig::default() }, 1).ok()?;
    model.projector.unfreeze();
    Some(model)
}
