//! The bodies of answers, in the form of OpenAI's API. Independent of how they are sent.

use imp_stages::conversation::{Ended, NoAnswer, Reply};
use serde_json::{Value, json};

use super::request::Refusal;

/// What all parts of an answer begin with.
pub(super) struct Head {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: i64,
    pub(super) model: String,
}

impl Head {
    /// A whole answer.
    pub(super) fn whole(&self, reply: &Reply) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": reply.text, "refusal": null},
                "logprobs": null,
                "finish_reason": finish_reason(reply.ended),
            }],
            "usage": usage(reply),
        })
    }

    /// A part of an answer: what is new of the message, and why it ends if it does. With `counts` there is a place for the number
    /// of tokens, which the last part has.
    pub(super) fn part(&self, delta: &Value, ended: Option<Ended>, counts: bool) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": ended.map(finish_reason)});
        self.chunk(&json!([choice]), counts.then_some(Value::Null))
    }

    /// The part that says how many tokens there were.
    pub(super) fn counts(&self, reply: &Reply) -> Value {
        self.chunk(&json!([]), Some(usage(reply)))
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        chunk
    }
}

fn finish_reason(ended: Ended) -> &'static str {
    match ended {
        Ended::Stop => "stop",
        Ended::MaxTokens | Ended::ContextFull | Ended::Interrupted => "length",
    }
}

/// An image counts as many tokens as it has patches. How many were known from the conversation before is not told, as OpenAI does in
/// `prompt_tokens_details.cached_tokens`: that may have been another client's, and whoever guesses how it began would see it.
fn usage(reply: &Reply) -> Value {
    json!({
        "prompt_tokens": reply.positions,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.positions + reply.tokens,
    })
}

impl Refusal {
    /// OpenAI's form of an error.
    pub(super) fn body(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<&NoAnswer> for Refusal {
    fn from(error: &NoAnswer) -> Self {
        let message = error.to_string();
        let refuse = |status, param: &str| Self { param: Some(param.into()), ..Self::new(status, message.clone()) };
        match error {
            NoAnswer::ContextFull { .. } => refuse(400, "messages").code("context_length_exceeded"),
            NoAnswer::Image { .. } => refuse(400, "messages").code("invalid_image"),
            NoAnswer::TurnToken(_) => refuse(400, "messages"),
            NoAnswer::Text(what) => {
                // It names files of this machine.
                tracing::warn!("a text was refused: {what}");
                let message = "the model's tokenizer does not take this text: it may be too long";
                Self { param: Some("messages".into()), ..Self::new(400, message) }
            }
            NoAnswer::Interrupted => Self::new(503, message),
            NoAnswer::Plain => refuse(400, "model"),
            NoAnswer::NotANumber(_) => Self::new(500, format!("{message}: its training may have diverged")),
            NoAnswer::Device(_) => Self::new(500, message),
        }
    }
}
