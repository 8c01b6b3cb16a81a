//! The names of MLC's parameters: those of mlc-imp for a Phi, and of mlc-llm's Qwen2, Phi-3 and Llama behind the prefix that its Llava
//! puts before a language model. Sources: mlc-imp's `imp_model.py`, mlc-llm's `*_loader.py`.

use crate::{config::Family, save::VISION_PREFIX};

const LANGUAGE: &str = "language_model.";
const VISION: &str = "vision_tower.vision_model.";
/// Layers of the projector: ours, theirs.
const PROJECTOR: [(&str, &str); 2] = [
    ("model.mm_projector.0", "multi_modal_projector.linear_1"),
    ("model.mm_projector.2", "multi_modal_projector.linear_2"),
];
/// What precedes the number of a block in our names.
const BLOCK: &str = "model.layers.";

/// The names of a family.
struct Names {
    /// Modules outside of blocks: ours, theirs.
    outer: [(&'static str, &'static str); 3],
    /// What precedes the number of a block.
    block: &'static str,
    /// Modules of a block: ours, theirs. Neighbours with the same name there have their rows in one matrix.
    inner: &'static [(&'static str, &'static str)],
}

const PHI: Names = Names {
    outer: [
        ("model.embed_tokens", "transformer.embd"),
        ("model.final_layernorm", "lm_head.ln"),
        ("lm_head", "lm_head.linear"),
    ],
    block: "transformer.h.",
    inner: &[
        ("input_layernorm", "ln"),
        ("self_attn.q_proj", "mixer.Wqkv"),
        ("self_attn.k_proj", "mixer.Wqkv"),
        ("self_attn.v_proj", "mixer.Wqkv"),
        ("self_attn.dense", "mixer.out_proj"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    ],
};

const PHI3: Names = Names {
    outer: [("model.embed_tokens", "transformer.embd"), ("model.norm", "transformer.norm"), ("lm_head", "lm_head")],
    block: "transformer.h.",
    inner: &[
        ("input_layernorm", "ln"),
        ("self_attn.qkv_proj", "mixer.qkv_proj"),
        ("self_attn.o_proj", "mixer.out_proj"),
        ("post_attention_layernorm", "post_attention_layernorm"),
        ("mlp.gate_up_proj", "mlp.gate_up_proj"),
        ("mlp.down_proj", "mlp.down_proj"),
    ],
};

const QWEN2: Names = Names {
    outer: [("model.embed_tokens", "model.embed_tokens"), ("model.norm", "model.norm"), ("lm_head", "lm_head")],
    block: BLOCK,
    inner: &[
        ("input_layernorm", "input_layernorm"),
        ("self_attn.q_proj", "self_attn.c_attn"),
        ("self_attn.k_proj", "self_attn.c_attn"),
        ("self_attn.v_proj", "self_attn.c_attn"),
        ("self_attn.o_proj", "self_attn.o_proj"),
        ("post_attention_layernorm", "post_attention_layernorm"),
        ("mlp.gate_proj", "mlp.gate_up_proj"),
        ("mlp.up_proj", "mlp.gate_up_proj"),
        ("mlp.down_proj", "mlp.down_proj"),
    ],
};

const LLAMA: Names = Names {
    inner: &[
        ("input_layernorm", "input_layernorm"),
        ("self_attn.q_proj", "self_attn.qkv_proj"),
        ("self_attn.k_proj", "self_attn.qkv_proj"),
        ("self_attn.v_proj", "self_attn.qkv_proj"),
        ("self_attn.o_proj", "self_attn.o_proj"),
        ("post_attention_layernorm", "post_attention_layernorm"),
        ("mlp.gate_proj", "mlp.gate_up_proj"),
        ("mlp.up_proj", "mlp.gate_up_proj"),
        ("mlp.down_proj", "mlp.down_proj"),
    ],
    ..QWEN2
};

fn names(family: Family) -> &'static Names {
    match family {
        Family::Phi => &PHI,
        Family::Qwen2 => &QWEN2,
        Family::Llama => &LLAMA,
        Family::Phi3 => &PHI3,
    }
}

/// The module there of the module `ours`.
pub(super) fn to_mlc(family: Family, ours: &str) -> Option<String> {
    let names = names(family);
    let is_ours = |(name, _): &&(&str, &str)| *name == ours;
    if let Some(part) = ours.strip_prefix(VISION_PREFIX) {
        return Some(format!("{VISION}{part}"));
    }
    if let Some((_, theirs)) = PROJECTOR.iter().find(is_ours) {
        return Some((*theirs).into());
    }
    if let Some((_, theirs)) = names.outer.iter().find(is_ours) {
        return Some(format!("{LANGUAGE}{theirs}"));
    }
    let (number, part) = ours.strip_prefix(BLOCK)?.split_once('.')?;
    let (_, theirs) = names.inner.iter().find(|(name, _)| *name == part)?;
    Some(format!("{LANGUAGE}{}{number}.{theirs}", names.block))
}

/// The modules whose rows follow each other in the module `theirs`; none if it is not known.
pub(super) fn to_ours(family: Family, theirs: &str) -> Vec<String> {
    let names = names(family);
    let is_theirs = |(_, name): &&(&str, &str)| *name == theirs;
    if let Some(part) = theirs.strip_prefix(VISION) {
        return vec![format!("{VISION_PREFIX}{part}")];
    }
    if let Some((ours, _)) = PROJECTOR.iter().find(is_theirs) {
        return vec![(*ours).into()];
    }
    let Some(module) = theirs.strip_prefix(LANGUAGE) else { return Vec::new() };
    if let Some((ours, _)) = names.outer.iter().find(|(_, name)| *name == module) {
        return vec![(*ours).into()];
    }
    let Some((number, part)) = module.strip_prefix(names.block).and_then(|rest| rest.split_once('.')) else {
        return Vec::new();
    };
    let inner = names.inner.iter().filter(|(_, name)| *name == part);
    inner.map(|(ours, _)| format!("{BLOCK}{number}.{ours}")).collect()
}

/// The part of a whole model that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Vision,
    Projector,
    Language,
    /// The output layer, with Phi's norm before it.
    Head,
}

pub(super) fn group(theirs: &str) -> Group {
    let is = |prefix: &str| theirs.starts_with(prefix);
    match () {
        () if is(VISION) => Group::Vision,
        () if is("multi_modal_projector.") => Group::Projector,
        () if is("language_model.lm_head.") => Group::Head,
        () => Group::Language,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every layer and norm of a family has a name there, which leads back to it.
    #[test]
    fn names_lead_back() {
        for family in Family::ALL {
            let norms = family.description().block_norms.iter().copied();
            let inner = family.block_layers().iter().map(|layer| layer.name).chain(norms);
            let inner = inner.map(|name| format!("{BLOCK}7.{name}"));
            let outer = ["model.embed_tokens", family.description().final_norm, family.head().name];
            for ours in inner.chain(outer.map(Into::into)) {
                let theirs = to_mlc(family, &ours).unwrap_or_else(|| panic!("{family:?} {ours}"));
                assert!(to_ours(family, &theirs).contains(&ours), "{family:?} {ours} {theirs}");
            }
        }
        let stacked = to_ours(Family::Phi, "language_model.transformer.h.3.mixer.Wqkv");
        assert_eq!(stacked, ["q_proj", "k_proj", "v_proj"].map(|part| format!("model.layers.3.self_attn.{part}")));
        assert!(to_ours(Family::Phi, "language_model.model.norm").is_empty());
        assert_eq!(to_mlc(Family::Phi, "model.layers.x"), None);
    }
}
