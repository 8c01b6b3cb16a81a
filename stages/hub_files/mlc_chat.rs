//! `mlc-chat-config.json`: what MLC's programs need to know of a model beside its weights. Independent of the weights. Fields: mlc-imp of
//! 2024-05-29 and mlc-llm of 2026-07-23, `protocol/mlc_chat_config.py` and `conversation_protocol.py`.

use imp_model::{Imp, mlc};
use serde_json::{Value, json};

use super::Manner;
use crate::text::template::{SYSTEM, Template};

/// The file.
pub(crate) const MLC_CHAT: &str = "mlc-chat-config.json";
/// The files of a tokenizer that MLC's programs may read.
pub(crate) const TOKENIZER_FILES: [&str; 6] =
    ["tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"];
/// What mlc-imp's template has in its code: the ids of what ends an answer, and of an image.
const STOP_AND_IMAGE: (u32, u32) = (50295, 50296);

impl Manner {
    /// Whether mlc-imp runs the model: its tower, its template and its tokens are in mlc-imp's code.
    pub(crate) fn is_of_mlc_imp(&self, model: &Imp) -> bool {
        let tokens = self.tokens().map(|tokens| (tokens.stop.first().copied().unwrap_or_default(), tokens.image));
        self.template == Template::Phi2 && mlc::is_of_mlc_imp(model) && tokens == Some(STOP_AND_IMAGE)
    }

    /// The content of [`MLC_CHAT`]; `files` are the tokenizer's that were written. The image token must have been added.
    pub(crate) fn mlc_chat(&self, model: &Imp, files: &[&str]) -> Value {
        let image = self.tokens().map_or(0, |tokens| tokens.image);
        let (kind, config) = mlc::model_config(model, image);
        let context = model.config.tokenizer_model_max_length;
        let mut chat = json!({
            "version": "0.1.0",
            "model_type": kind,
            "quantization": mlc::SCHEME,
            "model_config": config,
            "vocab_size": model.llm.config.vocab_size,
            "context_window_size": context,
            "sliding_window_size": -1,
            "prefill_chunk_size": context,
            "attention_sink_size": -1,
            "tensor_parallel_shards": 1,
            // The most likely token each time, as in `eval` and in `generation_config.json`.
            "temperature": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "top_p": 1.0,
            "tokenizer_files": files,
            "pad_token_id": self.pad(),
            "bos_token_id": model.llm.config.bos_token_id.unwrap_or_else(|| self.pad()),
            "eos_token_id": self.stop(),
        });
        let more = if kind == "imp" {
            // Its template is known to mlc-imp by name.
            json!({
                "conv_template": if self.template == Template::Phi2 { json!("imp") } else { self.conversation() },
                "eos_token_id": self.stop().first(),
                "mean_gen_len": 128,
                "max_gen_len": 512,
                "shift_fill_factor": 0.3,
            })
        } else {
            json!({
                "conv_template": self.conversation(),
                "pipeline_parallel_stages": 1,
                "active_vocab_size": model.llm.config.vocab_size,
                "model_task": "chat",
            })
        };
        if let (Value::Object(to), Value::Object(more)) = (&mut chat, more) {
            to.extend(more);
        }
        chat
    }

    /// The conversation template as mlc-llm describes one.
    fn conversation(&self) -> Value {
        // What surrounds a system text; the roles; what ends a turn; what follows a role, and an empty one.
        let (system, roles, seps, colon) = match self.template {
            Template::Plain | Template::Phi2 | Template::VicunaV1 => {
                ("{system_message} ", ["USER", "ASSISTANT"], vec![" ", "</s>"], [": ", ":"])
            }
            Template::Qwen2 => (
                "<|im_start|>system\n{system_message}<|im_end|>\n",
                ["<|im_start|>user", "<|im_start|>assistant"],
                vec!["<|im_end|>\n"],
                ["\n", "\n"],
            ),
            Template::Phi3 => (
                "<|system|>\n{system_message}<|end|>\n",
                ["<|user|>", "<|assistant|>"],
                vec!["<|end|>\n"],
                ["\n", "\n"],
            ),
        };
        json!({
            "name": "imp",
            "system_template": system,
            "system_message": SYSTEM,
            "roles": {"user": roles[0], "assistant": roles[1]},
            "seps": seps,
            "role_content_sep": colon[0],
            "role_empty_sep": colon[1],
            "stop_str": [self.template.stop_text()],
            "stop_token_ids": self.stop(),
        })
    }
}
