//! What requests mean and which are refused; over HTTP: `tests/e2e/serving.rs`.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::{
    Key,
    http::is_this_machine,
    request::{Asked, Defaults, Refusal, read},
};

const DEFAULTS: Defaults = Defaults { max_tokens: 64, temperature: 0.0, top_p: 1.0 };

fn asked(body: &Value) -> Result<Asked, Refusal> {
    read(body.to_string().as_bytes(), "imp", DEFAULTS, 99)
}

fn question() -> Value {
    json!({"messages": [{"role": "user", "content": "What is it?"}]})
}

/// A valid request with one key changed.
fn with(key: &str, value: Value) -> Value {
    let mut body = question();
    body[key] = value;
    body
}

fn image(url: &str) -> Value {
    json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]})
}

#[test]
fn a_conversation_is_understood() {
    let asked = asked(&json!({
        "model": "imp",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is "},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "auto"}},
                {"type": "text", "text": "this?"},
            ]},
            {"role": "assistant", "content": "A cat.", "refusal": null, "tool_calls": []},
            {"role": "user", "content": "Why?", "name": "me"},
        ],
        "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": -1, "stop": ["a", "b"],
        "stream": true, "stream_options": {"include_usage": true},
        "n": 1, "presence_penalty": 0, "logprobs": false, "tools": [], "user": "me", "logit_bias": null,
    }))
    .unwrap();
    assert_eq!(asked.dialogue.system.as_deref(), Some("Be brief."));
    let (first, answer) = &asked.dialogue.past[0];
    assert_eq!((&*first.text, first.images.len(), &**answer), ("What is this?", 1, "A cat."));
    assert_eq!((&*asked.dialogue.asked.text, asked.dialogue.asked.images.len()), ("Why?", 0));
    assert_eq!((asked.manner.max_tokens, &*asked.manner.stop), (7, &["a".to_string(), "b".to_string()][..]));
    let sampling = asked.manner.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.5, 0.9, u64::MAX));
    assert!(asked.stream && asked.include_usage);
}

#[test]
fn what_a_request_does_not_say_is_the_servers() {
    let asked = asked(&question()).unwrap();
    let sampling = asked.manner.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.0, 1.0, 99));
    assert_eq!((asked.manner.max_tokens, asked.stream, asked.dialogue.system), (64, false, None));
}

#[test]
fn what_can_not_be_done_is_refused_in_words() {
    let messages = |messages: Value| json!({ "messages": messages });
    let user = json!({"role": "user", "content": "a"});
    let assistant = json!({"role": "assistant", "content": "a"});
    let many: Vec<Value> = (0..1001).map(|_| user.clone()).collect();
    for (body, param, words) in [
        (with("n", json!(2)), "n", "`n` must be 1"),
        (with("tools", json!([{}])), "tools", "not supported"),
        (with("frequency_penalty", json!(0.5)), "frequency_penalty", "not supported"),
        (with("best_of", json!(3)), "best_of", "`best_of` is not known"),
        (with("temperature", json!(3)), "temperature", "from 0 to 2"),
        (with("temperature", json!("hot")), "temperature", "from 0 to 2"),
        (with("top_p", json!(0)), "top_p", "above 0"),
        (with("max_tokens", json!(0)), "max_tokens", "from 1 to 65536"),
        (with("max_tokens", json!(1e9)), "max_tokens", "from 1 to 65536"),
        (with("seed", json!(1.5)), "seed", "an integer"),
        (with("stop", json!(["a", "b", "c", "d", "e"])), "stop", "up to 4"),
        (with("stop", json!("")), "stop", "none empty"),
        (with("stream", json!(1)), "stream", "true or false"),
        (with("stream_options", json!({})), "stream_options", "needs `stream`"),
        (with("response_format", json!({"type": "json_object"})), "response_format", "not supported"),
        (json!({}), "messages", "must be a list"),
        (messages(json!([])), "messages", "must be the user's"),
        (messages(json!(many)), "messages", "1000 are the most"),
        (messages(json!([user, assistant])), "messages", "must be the user's"),
        (messages(json!([user, user])), "messages[1]", "put them into one"),
        (messages(json!([assistant])), "messages[0]", "must follow"),
        (messages(json!([user, assistant, {"role": "system", "content": "a"}])), "messages[2]", "must be the first"),
        (messages(json!([{"role": "tool", "content": "a"}])), "messages[0]", "no messages of the role `tool`"),
        (messages(json!([{"role": "user", "content": 5}])), "messages[0].content", "a text or a list"),
        (messages(json!([{"role": "user", "content": [{"type": "audio"}]}])), "messages[0].content[0]", "`audio`"),
        (messages(json!([{"role": "user", "content": [{"type": "text"}]}])), "messages[0].content[0]", "needs `text`"),
        (image("https://example.org/a.png"), "messages[0].content[0]", "are not fetched"),
        (image("file:///etc/passwd"), "messages[0].content[0]", "are not fetched"),
        (image("/etc/passwd"), "messages[0].content[0]", "are not fetched"),
        (image("data:image/png;base64"), "messages[0].content[0]", "needs a comma"),
        (image("data:image/png,abc"), "messages[0].content[0]", "must be in base64"),
        (image("data:image/png;base64,a$b"), "messages[0].content[0]", "not base64"),
        (image(&format!("data:image/png;base64,{}", "A".repeat(27_000_000))), "messages[0].content[0]", "larger than"),
    ] {
        let refusal = asked(&body).unwrap_err();
        assert_eq!((refusal.status, refusal.param.as_deref()), (400, Some(param)), "{refusal:?}");
        assert!(refusal.message.contains(words), "{refusal:?}");
    }
    let other = asked(&with("model", json!("gpt-4"))).unwrap_err();
    assert_eq!((other.status, other.code), (404, Some("model_not_found")));
    for body in ["{", "[]", "", &"[".repeat(100_000)] {
        assert_eq!(read(body.as_bytes(), "imp", DEFAULTS, 0).unwrap_err().status, 400);
    }
}

#[test]
fn a_host_is_this_machine_or_not() {
    for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "[::1]"] {
        assert!(is_this_machine(host), "{host}");
    }
    for host in
        ["", "example.org", "localhost.example.org:80", "127.0.0.1.nip.io", "10.0.0.1:80", "localhost:80:x", "[::2]"]
    {
        assert!(!is_this_machine(host), "{host}");
    }
}

#[test]
fn only_the_key_is_the_key() {
    let key = Key::new("0123456789abcdef");
    assert!(key.is("0123456789abcdef"));
    assert!(!key.is("0123456789abcdeF") && !key.is("") && !key.is("0123456789abcdef0"));
}
