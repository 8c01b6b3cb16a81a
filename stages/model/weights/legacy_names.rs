//! Maps other tensor names to those of Imp's training code: of the first published Imps (imp-v1-3b and Imp-v1.5-3B-196, which
//! use Microsoft's Phi code), of LLaVA's `non_lora_trainables` and `mm_projector`, of what was saved in a wrapper of PyTorch's, and of
//! transformers' Llava, before and since its version 4.52.

/// Name prefixes: theirs, ours.
const PREFIXES: [(&str, &str); 17] = [
    ("base_model.model.model.mm_projector.", "model.mm_projector."),
    ("model.model.mm_projector.", "model.mm_projector."),
    ("mm_projector.", "model.mm_projector."),
    ("transformer.embd.wte.", "model.embed_tokens."),
    ("transformer.mm_projector.", "model.mm_projector."),
    ("transformer.vision_tower.", "model.vision_tower."),
    ("lm_head.ln.", "model.final_layernorm."),
    ("lm_head.linear.", "lm_head."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
];
/// What the wrappers of distributed training put before every name.
const WRAPPER: &str = "module.";
/// Name prefixes within a block: after `transformer.h.N.`, after `model.layers.N.`.
const BLOCK: [(&str, &str); 4] = [
    ("ln.", "input_layernorm."),
    ("mixer.out_proj.", "self_attn.dense."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
];
/// The projections whose rows are stacked in `mixer.Wqkv`, in this order.
const STACKED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The transformers name of a tensor; several if it stacks equal parts along its first axis.
pub(super) fn current_names(name: &str) -> Vec<String> {
    let name = name.strip_prefix(WRAPPER).unwrap_or(name);
    if let Some((from, to)) = PREFIXES.iter().find(|(from, _)| name.starts_with(from)) {
        return vec![name.replacen(from, to, 1)];
    }
    in_block(name).unwrap_or_else(|| vec![name.into()])
}

fn in_block(name: &str) -> Option<Vec<String>> {
    let (layer, part) = name.strip_prefix("transformer.h.")?.split_once('.')?;
    if let Some(kind) = part.strip_prefix("mixer.Wqkv.") {
        return Some(
            STACKED.iter().map(|projection| format!("model.layers.{layer}.self_attn.{projection}.{kind}")).collect(),
        );
    }
    let (from, to) = BLOCK.iter().find(|(from, _)| part.starts_with(from))?;
    Some(vec![format!("model.layers.{layer}.{}", part.replacen(from, to, 1))])
}

#[cfg(test)]
mod tests {
    use super::current_names;

    #[test]
    fn old_names_become_those_of_transformers() {
        for (old, new) in [
            ("transformer.h.11.ln.bias", "model.layers.11.input_layernorm.bias"),
            ("transformer.h.0.mixer.out_proj.weight", "model.layers.0.self_attn.dense.weight"),
            ("lm_head.linear.weight", "lm_head.weight"),
            ("lm_head.ln.weight", "model.final_layernorm.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("model.layers.0.mlp.fc1.weight", "model.layers.0.mlp.fc1.weight"),
            ("transformer.h.0.unknown", "transformer.h.0.unknown"),
            ("module.base_model.model.model.mm_projector.2.bias", "model.mm_projector.2.bias"),
            ("model.model.mm_projector.0.weight", "model.mm_projector.0.weight"),
            ("mm_projector.0.weight", "model.mm_projector.0.weight"),
            ("model.mm_projector.0.weight", "model.mm_projector.0.weight"),
        ] {
            assert_eq!(current_names(old), [new]);
        }
        let stacked = current_names("transformer.h.2.mixer.Wqkv.bias");
        assert_eq!(stacked[1], "model.layers.2.self_attn.k_proj.bias");
        assert_eq!(stacked.len(), 3);
    }
}
