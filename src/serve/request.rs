//! Reads the body of a request for an answer, in the form of OpenAI's API. What this server does not do is refused in words, unless it
//! is asked for as what happens anyway. Independent of HTTP.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use imp_stages::conversation::{Dialogue, Image, Manner, Question, Sampling};
use serde_json::{Map, Value};

/// Most messages of a conversation.
const MOST_MESSAGES: usize = 1000;
/// Most images of a conversation.
const MOST_IMAGES: usize = 64;
/// Most bytes of an image's file.
const LARGEST_IMAGE: usize = 20_000_000;
/// Most texts that end an answer, as in OpenAI's API, and their most bytes.
const MOST_STOPS: usize = 4;
const LONGEST_STOP: usize = 1000;
/// Most tokens of an answer.
const MOST_TOKENS: u64 = 65_536;

/// What holds where a request does not say it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
}

/// A request that was understood.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) dialogue: Dialogue,
    pub(crate) manner: Manner,
    /// Whether the answer is sent part by part.
    pub(crate) stream: bool,
    /// Whether the last part says how many tokens there were.
    pub(crate) include_usage: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: String,
    /// The key of the request that is wrong.
    pub(crate) param: Option<String>,
    /// OpenAI's word for it, where there is one.
    pub(crate) code: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    fn at(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(400, message) }
    }
}

type Read<T> = Result<T, Refusal>;

/// Reads a request to the model `name`. `seed` holds if it says none.
pub(crate) fn read(body: &[u8], name: &str, defaults: Defaults, seed: u64) -> Read<Asked> {
    let json: Value =
        serde_json::from_slice(body).map_err(|error| Refusal::new(400, format!("the body is not JSON: {error}")))?;
    let Value::Object(keys) = json else { return Err(Refusal::new(400, "the body is not a JSON object")) };
    // `null` is as good as nothing, as clients send it.
    let keys: Map<String, Value> = keys.into_iter().filter(|(_, value)| !value.is_null()).collect();
    for (key, value) in &keys {
        check(key, value)?;
    }
    if let Some(model) = keys.get("model").filter(|model| *model != name) {
        let message = format!("there is no model {model}: this server has `{name}`");
        let refusal = Refusal { param: Some("model".into()), ..Refusal::new(404, message) };
        return Err(refusal.code("model_not_found"));
    }
    let stream = flag(&keys, "stream")?;
    let include_usage = match keys.get("stream_options") {
        None => false,
        Some(_) if !stream => return Err(Refusal::at("stream_options", "`stream_options` needs `stream`")),
        Some(Value::Object(options)) => {
            if let Some(key) =
                options.keys().find(|key| !["include_usage", "include_obfuscation"].contains(&key.as_str()))
            {
                return Err(Refusal::at("stream_options", format!("`stream_options.{key}` is not known")));
            }
            flag(options, "include_usage")?
        }
        Some(_) => return Err(Refusal::at("stream_options", "`stream_options` must be an object")),
    };
    let manner = manner(&keys, defaults, seed)?;
    Ok(Asked { dialogue: dialogue(keys.get("messages"))?, manner, stream, include_usage })
}

/// Refuses a key that is not known, or asks for what this server does not do.
fn check(key: &str, value: &Value) -> Read<()> {
    let is_usual = match key {
        // What is read elsewhere, and what has no influence on an answer.
        "model"
        | "messages"
        | "stream"
        | "stream_options"
        | "temperature"
        | "top_p"
        | "seed"
        | "stop"
        | "max_tokens"
        | "max_completion_tokens"
        | "user"
        | "metadata"
        | "safety_identifier"
        | "prompt_cache_key"
        | "service_tier"
        | "store"
        | "parallel_tool_calls" => true,
        "n" => *value == 1,
        "frequency_penalty" | "presence_penalty" => value.as_f64() == Some(0.0),
        "top_logprobs" => *value == 0,
        "logprobs" => *value == false,
        "logit_bias" => value.as_object().is_some_and(Map::is_empty),
        "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
        "tool_choice" | "function_call" => *value == "none" || *value == "auto",
        "response_format" => value["type"] == "text",
        "modalities" => *value == serde_json::json!(["text"]),
        _ => return Err(Refusal::at(key, format!("`{key}` is not known here")).code("unknown_parameter")),
    };
    if is_usual {
        return Ok(());
    }
    let what = match key {
        "n" => "only one answer is given: `n` must be 1".to_string(),
        _ => format!("`{key}` with this value is not supported"),
    };
    Err(Refusal::at(key, what).code("unsupported_value"))
}

fn flag(keys: &Map<String, Value>, key: &str) -> Read<bool> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(is)) => Ok(*is),
        Some(_) => Err(Refusal::at(key, format!("`{key}` must be true or false"))),
    }
}

fn manner(keys: &Map<String, Value>, defaults: Defaults, seed: u64) -> Read<Manner> {
    let number = |key: &str, default: f32, is_valid: fn(f64) -> bool, range: &str| match keys.get(key) {
        None => Ok(default),
        Some(value) => match value.as_f64().filter(|number| is_valid(*number)) {
            Some(number) => Ok(number as f32),
            None => Err(Refusal::at(key, format!("`{key}` must be {range}"))),
        },
    };
    let temperature = number("temperature", defaults.temperature, |t| (0.0..=2.0).contains(&t), "from 0 to 2")?;
    let top_p = number("top_p", defaults.top_p, |p| p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
    let seed = match keys.get("seed") {
        None => seed,
        Some(given) => given
            .as_i64()
            .map(i64::cast_unsigned)
            .or_else(|| given.as_u64())
            .ok_or_else(|| Refusal::at("seed", "`seed` must be an integer"))?,
    };
    let tokens = |key: &str| match keys.get(key) {
        None => Ok(None),
        Some(given) => match given.as_u64().filter(|tokens| (1..=MOST_TOKENS).contains(tokens)) {
            Some(tokens) => Ok(Some(tokens as usize)),
            None => Err(Refusal::at(key, format!("`{key}` must be from 1 to {MOST_TOKENS}"))),
        },
    };
    let max_tokens = match (tokens("max_tokens")?, tokens("max_completion_tokens")?) {
        (Some(one), Some(other)) if one != other => {
            return Err(Refusal::at("max_tokens", "`max_tokens` and `max_completion_tokens` differ: give one"));
        }
        (one, other) => one.or(other).unwrap_or(defaults.max_tokens),
    };
    let sampling = Sampling { temperature, top_p, seed, ..Sampling::default() };
    Ok(Manner { max_tokens, sampling, stop: stops(keys.get("stop"))? })
}

fn stops(stop: Option<&Value>) -> Read<Vec<String>> {
    let texts = match stop {
        None => return Ok(Vec::new()),
        Some(Value::Array(several)) => several.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let valid = |text: &&str| !text.is_empty() && text.len() <= LONGEST_STOP;
    let texts: Option<Vec<String>> = texts.iter().map(|text| text.as_str().filter(valid).map(String::from)).collect();
    texts.filter(|texts| texts.len() <= MOST_STOPS).ok_or_else(|| {
        let message = format!(
            "`stop` must be a text or up to {MOST_STOPS} texts, none empty or longer than {LONGEST_STOP} bytes"
        );
        Refusal::at("stop", message)
    })
}

/// A message, before the order of messages is looked at.
struct Message {
    role: String,
    content: Question,
}

fn dialogue(messages: Option<&Value>) -> Read<Dialogue> {
    let Some(Value::Array(messages)) = messages else {
        return Err(Refusal::at("messages", "`messages` must be a list of messages"));
    };
    if messages.len() > MOST_MESSAGES {
        let message = format!("there are {} messages, and {MOST_MESSAGES} are the most", messages.len());
        return Err(Refusal::at("messages", message));
    }
    let mut dialogue = Dialogue::default();
    let mut images = 0;
    // The question that waits for its answer.
    let mut open: Option<Question> = None;
    for (number, message) in messages.iter().enumerate() {
        let at = format!("messages[{number}]");
        let Message { role, content } = message_of(message, &at)?;
        images += content.images.len();
        if images > MOST_IMAGES {
            return Err(Refusal::at(at, format!("there are more than {MOST_IMAGES} images")));
        }
        if role != "user" && !content.images.is_empty() {
            return Err(Refusal::at(at, "only messages of the user can have images"));
        }
        match (role.as_str(), open.take()) {
            ("system" | "developer", None) if number == 0 => dialogue.system = Some(content.text),
            ("user", None) => open = Some(content),
            ("assistant", Some(question)) => dialogue.past.push((question, content.text)),
            ("system" | "developer", _) => {
                return Err(Refusal::at(at, "a system message must be the first, and the only one"));
            }
            ("user", Some(_)) => {
                return Err(Refusal::at(at, "this is from the user, as the one before: put them into one message"));
            }
            ("assistant", None) => return Err(Refusal::at(at, "an answer must follow a message of the user")),
            _ => {
                return Err(Refusal::at(
                    at,
                    format!("there are no messages of the role `{role}`: use system, user, assistant"),
                ));
            }
        }
    }
    dialogue.asked = open.ok_or_else(|| Refusal::at("messages", "the last message must be the user's"))?;
    Ok(dialogue)
}

fn message_of(message: &Value, at: &str) -> Read<Message> {
    let Value::Object(keys) = message else { return Err(Refusal::at(at, "a message must be an object")) };
    for (key, value) in keys.iter().filter(|(_, value)| !value.is_null()) {
        let is_usual = match key.as_str() {
            "role" | "content" | "name" => true,
            // Clients send back what they were given.
            "tool_calls" | "annotations" => value.as_array().is_some_and(Vec::is_empty),
            _ => false,
        };
        if !is_usual {
            return Err(Refusal::at(format!("{at}.{key}"), format!("`{key}` of a message is not supported")));
        }
    }
    let role = keys.get("role").and_then(Value::as_str).unwrap_or_default().to_string();
    let at = format!("{at}.content");
    let mut content = Question::default();
    match keys.get("content") {
        Some(Value::String(text)) => content.text.clone_from(text),
        Some(Value::Array(parts)) => {
            for (number, part) in parts.iter().enumerate() {
                add_part(&mut content, part, &format!("{at}[{number}]"))?;
            }
        }
        _ => return Err(Refusal::at(at, "`content` must be a text or a list of parts")),
    }
    Ok(Message { role, content })
}

/// Adds a part of a message. Images come before the text, as the model was trained, wherever they stand.
fn add_part(content: &mut Question, part: &Value, at: &str) -> Read<()> {
    match (part["type"].as_str(), part["text"].as_str(), part["image_url"]["url"].as_str()) {
        (Some("text"), Some(text), _) => content.text.push_str(text),
        (Some("image_url"), _, Some(url)) => content.images.push(image(url, at)?),
        (Some(kind @ ("text" | "image_url")), ..) => {
            let form = if kind == "text" { "`text`" } else { "`image_url`, an object with `url`" };
            return Err(Refusal::at(at, format!("a part of the type `{kind}` needs {form}")));
        }
        (kind, ..) => {
            let kind = kind.unwrap_or_default();
            return Err(Refusal::at(
                at,
                format!("parts of the type `{kind}` are not supported: use text and image_url"),
            ));
        }
    }
    Ok(())
}

/// The image in a `data:` address.
fn image(url: &str, at: &str) -> Read<Image> {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let refuse = |message: String| Err(Refusal::at(at, message).code("invalid_image_url"));
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    if scheme.as_deref() != Some("data") {
        return refuse(
            "images are not fetched from addresses or files: send the image as data:image/png;base64,...".into(),
        );
    }
    let Some((head, data)) = url["data:".len()..].split_once(',') else {
        return refuse("a data: address needs a comma before its data".into());
    };
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return refuse("a data: address of an image must be in base64, as in data:image/png;base64,...".into());
    }
    if data.len() / 4 * 3 > LARGEST_IMAGE {
        return refuse(format!("the image is larger than {LARGEST_IMAGE} bytes"));
    }
    match BASE64.decode(data) {
        Ok(bytes) => Ok(Image::new(bytes)),
        Err(error) => refuse(format!("the image's data is not base64: {error}")),
    }
}
