//! The conversation templates in Jinja, the language of Hugging Face's `chat_template.jinja` and of GGUF files. They render what
//! [`Template::prompt`] and training make of the same turns; tests compare them token for token. Independent of models.

use serde_json::json;

use crate::text::template::{SYSTEM, Template};

/// Renders the text of a message: a string, or a list of parts, of which images come first, each on a line of its own.
const BODY: &str = "\
{%- macro body(message) -%}\
{%- if message.content is string -%}{{ message.content }}\
{%- else -%}\
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}\
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}\
{%- endif -%}\
{%- endmacro -%}";

/// The same where llama.cpp has put a mark into the text for each image, such as `<__media_7Xq__>`: the marks come first, each on a
/// line of its own, wherever a client has put the images.
const MARKED_BODY: &str = "\
{%- macro body(message) -%}\
{%- if '<__media' in message.content -%}\
{%- set pieces = message.content.split('__>') -%}\
{%- for piece in pieces[:-1] if '<__media' in piece -%}{{ '<__media' + piece.split('<__media')[-1] + '__>\\n' }}{%- endfor -%}\
{%- for piece in pieces[:-1] -%}\
{{ piece.split('<__media')[0] if '<__media' in piece else piece + '__>' }}\
{%- endfor -%}\
{{ pieces[-1] }}\
{%- else -%}{{ message.content }}\
{%- endif -%}\
{%- endmacro -%}";

/// The template in Jinja for transformers; `None` for `plain`, which has no conversations.
pub(crate) fn chat_template(template: Template) -> Option<String> {
    jinja(template, BODY)
}

/// The template in Jinja for GGUF files.
pub(crate) fn marked_chat_template(template: Template) -> Option<String> {
    jinja(template, MARKED_BODY)
}

fn jinja(template: Template, body: &str) -> Option<String> {
    // What comes before and after a system text; one turn of a user and of the assistant; what asks for an answer.
    let (system, user, assistant, ask) = match template {
        Template::Plain => return None,
        Template::Phi2 | Template::VicunaV1 => (
            ["''", "' '"],
            "{{ 'USER:' + ((' ' + body(turn) + ' ') if body(turn) else '') }}",
            "{{ 'ASSISTANT:' + ((' ' + body(turn) + '</s>') if body(turn) else '') }}",
            "{{ 'ASSISTANT:' }}",
        ),
        Template::Qwen2 => (
            ["'<|im_start|>system\\n'", "'<|im_end|>\\n'"],
            "{{ '<|im_start|>user\\n' + body(turn) + '<|im_end|>\\n' }}",
            "{{ '<|im_start|>assistant\\n' + body(turn) + '<|im_end|>\\n' }}",
            "{{ '<|im_start|>assistant\\n' }}",
        ),
        Template::Phi3 => (
            ["'<|system|>\\n'", "'<|end|>\\n'"],
            "{{ '<|user|>\\n' + body(turn) + '<|end|>\\n' }}",
            "{{ '<|assistant|>\\n' + body(turn) + '<|end|>\\n' }}",
            "{{ '<|assistant|>\\n' }}",
        ),
    };
    let [before, after] = system;
    // JSON's strings are Jinja's, too.
    let usual = json!(SYSTEM);
    Some(format!(
        "{body}\
         {{%- set has_system = messages and messages[0].role == 'system' -%}}\
         {{{{ {before} + (body(messages[0]) if has_system else {usual}) + {after} }}}}\
         {{%- for turn in (messages[1:] if has_system else messages) -%}}\
         {{%- if turn.role == 'user' -%}}{user}{{%- else -%}}{assistant}{{%- endif -%}}\
         {{%- endfor -%}}\
         {{%- if add_generation_prompt -%}}{ask}{{%- endif -%}}"
    ))
}
