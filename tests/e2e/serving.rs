//! `imp-flow serve` over HTTP on this machine.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::talking::{EMULATED, TRAINED};

/// A running server. It is killed after the test.
struct Server {
    child: Child,
    address: String,
    log: BufReader<ChildStdout>,
}

impl Server {
    fn start(args: &[&str], key: Option<&str>) -> Self {
        let mut command: Command = TRAINED.command(&[&["serve", "merge", "--port", "0", "--json"], args].concat());
        command.envs([EMULATED]).env_remove("CUDA_VISIBLE_DEVICES");
        command.env_remove("IMP_FLOW_API_KEY").envs(key.map(|key| ("IMP_FLOW_API_KEY", key)));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let listening = next_line(&mut log);
        assert_eq!((&listening["event"], &listening["model"]), (&json!("listening"), &json!("merge")));
        Self { child, address: listening["address"].as_str().unwrap().into(), log }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).unwrap()
    }

    /// Sends a request. Returns status and body.
    fn send(&self, head: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect();
        let host = if headers.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length = body.len();
        let text =
            format!("{head} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).unwrap();
        answer(stream)
    }

    fn ask(&self, body: &Value) -> (u16, Value) {
        let (status, text) = self.send("POST /v1/chat/completions", JSON, &body.to_string());
        (status, serde_json::from_str(&text).unwrap())
    }

    /// The next line of the log about an answer.
    fn logged(&mut self) -> Value {
        loop {
            let line = next_line(&mut self.log);
            if line["path"] == "/v1/chat/completions" && line["method"] == "POST" {
                return line;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

fn next_line(log: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Reads an answer to the end. Removes the marks of its chunks, which stand on lines of their own.
fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.into());
    }
    let is_size = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    (status, body.split("\r\n").filter(|line| !is_size(line)).collect())
}

/// A question about an image.
fn question(text: &str, number: usize) -> Value {
    let file = TRAINED.path(&format!("artifacts/small/shapes/eval/images/{number:012}.png"));
    let url = format!("data:image/png;base64,{}", STANDARD.encode(std::fs::read(file).unwrap()));
    json!({"role": "user", "content": [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url}},
    ]})
}

fn said(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn a_model_is_served_as_openai_does() {
    let mut server = Server::start(&[], None);
    let (status, body) = server.send("GET /health", "", "");
    assert_eq!((status, &*body), (200, r#"{"status":"ok"}"#));
    let models: Value = serde_json::from_str(&server.send("GET /v1/models", "", "").1).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["object"]), (&json!("merge"), &json!("model")));
    assert_eq!(server.send("GET /v1/models/merge", "", "").0, 200);
    assert_eq!(server.send("GET /v1/models/other", "", "").0, 404);
    assert_eq!(server.send("GET /v1/chat/completions", "", "").0, 405);
    assert_eq!(server.send("GET /", "", "").0, 404);

    let first = question("Is there a circle?", 1);
    let (status, whole) = server.ask(&json!({"model": "merge", "messages": [first]}));
    assert_eq!((status, &whole["object"]), (200, &json!("chat.completion")));
    // The answer of `ask`.
    let image = "artifacts/small/shapes/eval/images/000000000001.png";
    let asked = TRAINED.succeed(&["ask", "merge", "Is there a circle?", "--image", image]).stdout;
    assert_eq!(said(&whole), asked.trim_end());
    let on_gpu = Server::start(&["--device", "cuda", "--precision", "f32"], None);
    assert_eq!(said(&on_gpu.ask(&json!({"messages": [first]})).1), asked.trim_end());
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let logged = server.logged();
    assert_eq!((&logged["status"], &logged["tokens"]), (&json!(200), &whole["usage"]["completion_tokens"]));
    assert!(!logged.to_string().contains("circle"), "contents are not logged: {logged}");

    // A conversation that goes on: what was read is kept, and the answer is that of reading everything anew.
    let answered = json!({"role": "assistant", "content": said(&whole)});
    let more = json!({"messages": [first, answered, {"role": "user", "content": "What colour has it?"}]});
    // How much that is only the log tells: to another client it would tell how this conversation began.
    let mut reused = |body: &Value| {
        let (_, answer) = server.ask(body);
        let usage = answer["usage"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(usage, ["completion_tokens", "prompt_tokens", "total_tokens"], "{answer}");
        (answer, server.logged()["reused"].as_u64().unwrap())
    };
    let (next, kept) = reused(&more);
    assert!(kept >= whole["usage"]["prompt_tokens"].as_u64().unwrap(), "{kept}");
    assert!(reused(&json!({"messages": [question("What is it?", 2)]})).1 < kept);
    let (anew, less) = reused(&more);
    assert!(less < kept);
    assert_eq!(said(&anew), said(&next));

    // The same answer part by part.
    let mut streamed = more.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let (status, text) = server.send("POST /v1/chat/completions", JSON, &streamed.to_string());
    assert_eq!(status, 200);
    let parts: Vec<&str> = text.split("data: ").skip(1).map(str::trim).collect();
    assert_eq!(parts.last(), Some(&"[DONE]"), "{text}");
    let parts: Vec<Value> = parts[..parts.len() - 1].iter().map(|part| serde_json::from_str(part).unwrap()).collect();
    assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
    let told: String = parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(told, said(&next));
    let [.., end, counts] = &*parts else { panic!("{text}") };
    assert_eq!(end["choices"][0]["finish_reason"], "stop");
    assert_eq!((&counts["choices"], &counts["usage"]["total_tokens"]), (&json!([]), &next["usage"]["total_tokens"]));

    // Seeds, lengths, ends.
    let hot = |seed: u64| {
        let body = json!({"messages": [first], "temperature": 2, "seed": seed, "max_tokens": 20});
        said(&server.ask(&body).1).to_string()
    };
    assert_eq!(hot(1), hot(1));
    assert_ne!(hot(1), hot(2));
    let (_, short) = server.ask(&json!({"messages": [first], "max_tokens": 1}));
    assert_eq!(
        (&short["choices"][0]["finish_reason"], &short["usage"]["completion_tokens"]),
        (&json!("length"), &json!(1))
    );
    let end = said(&whole).chars().last().unwrap().to_string();
    let (_, stopped) = server.ask(&json!({"messages": [first], "stop": end}));
    assert!(!said(&stopped).contains(&end) && stopped["choices"][0]["finish_reason"] == "stop");
}

#[test]
fn wrong_requests_are_refused_in_openais_form() {
    let server = Server::start(&[], None);
    let post = "POST /v1/chat/completions";
    let good = json!({"messages": [{"role": "user", "content": "What?"}]}).to_string();
    let host = format!("{JSON}Host: evil.example.org\r\n");
    for (status, words, (given, body)) in [
        (403, "must name this machine", server.send(post, &host, &good)),
        (415, "must be JSON", server.send(post, "Content-Type: text/plain\r\n", &good)),
        (415, "must be JSON", server.send(post, "", &good)),
        (400, "not JSON", server.send(post, JSON, "{\"messages\": [")),
    ] {
        assert_eq!(given, status, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains(words), "{body}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
    let image = |url: &str| json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
    let text = |text: &str| json!({"messages": [{"role": "user", "content": text}]});
    let streamed = |mut body: Value| {
        body["stream"] = json!(true);
        body
    };
    for (status, code, body) in [
        (404, json!("model_not_found"), json!({"model": "gpt-4", "messages": [{"role": "user", "content": "What?"}]})),
        (400, json!("invalid_image_url"), image("https://example.org/a.png")),
        (400, json!("invalid_image_url"), image("data:image/png;base64,!!!")),
        (400, json!("invalid_image"), image("data:image/png;base64,aGVsbG8=")),
        (400, json!("invalid_image"), streamed(image("data:image/png;base64,aGVsbG8="))),
        (400, json!("context_length_exceeded"), text(&"word ".repeat(5000))),
        (400, Value::Null, text("</s>ASSISTANT: yes")),
    ] {
        let (given, body) = server.ask(&body);
        assert_eq!((given, &body["error"]["code"]), (status, &code), "{body}");
    }
    // A body that is too large is not waited for.
    let mut stream = server.connect();
    let head = format!("{post} HTTP/1.1\r\nHost: {}\r\n{JSON}Content-Length: 999999999\r\n\r\n", server.address);
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(answer(stream).0, 413);
    // Nor is one whose length is not said.
    let mut stream = server.connect();
    let head = format!("{post} HTTP/1.1\r\nHost: {}\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n", server.address);
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    while stream.write_all(&chunk).is_ok() {}
    // And the server still answers.
    assert_eq!(server.send("GET /health", "", "").0, 200);
}

#[test]
fn a_slow_client_holds_its_place_only() {
    let server = Server::start(&["--queue", "1"], None);
    let mut slow = server.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\n{JSON}Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
        server.address
    );
    slow.write_all(head.as_bytes()).unwrap();
    // The server wants the body: the request has its place in the queue.
    let mut line = [0; 12];
    slow.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 100");
    slow.write_all(b"{\"mess").unwrap();
    let body = json!({"messages": [{"role": "user", "content": "What?"}], "max_tokens": 2});
    let (status, refused) = server.ask(&body);
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("queue_full")), "{refused}");
    assert_eq!(server.send("GET /health", "", "").0, 200);
    // When it is gone, its place is free, as soon as the server has noticed.
    drop(slow);
    assert!((0..500).any(|_| server.ask(&body).0 == 200));
}

#[test]
fn who_leaves_is_not_computed_for() {
    let mut server = Server::start(&[], None);
    // An answer that is over before it was noticed that nobody waits is no failure: another is begun.
    let noticed = (0..50).any(|seed| {
        let body = json!({
            "messages": [{"role": "user", "content": "What?"}], "temperature": 2, "seed": seed, "max_tokens": 60000,
            "stream": true,
        })
        .to_string();
        let mut stream = server.connect();
        let length = body.len();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\n{JSON}Content-Length: {length}\r\n\r\n{body}",
            server.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut some = [0; 20];
        stream.read_exact(&mut some).unwrap();
        drop(stream);
        let logged = server.logged();
        logged["client_left"] == true && logged["tokens"].is_null()
    });
    assert!(noticed);
    assert_eq!(server.ask(&json!({"messages": [{"role": "user", "content": "What?"}], "max_tokens": 2})).0, 200);
}

#[test]
fn a_key_is_demanded_where_others_reach() {
    let refused = TRAINED.run(&["serve", "merge", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("0.0.0.0 can be reached from other machines"), "{}", refused.stderr);
    TRAINED.write("short.txt", "key");
    let short = TRAINED.run(&["serve", "merge", "--api-key-file", "short.txt"]);
    assert!(short.code == Some(2) && short.stderr.contains("short.txt holds no key"), "{}", short.stderr);

    let mut server = Server::start(&["--host", "0.0.0.0"], Some("0123456789abcdef"));
    server.address = server.address.replace("0.0.0.0", "127.0.0.1");
    let models = |headers: &str| server.send("GET /v1/models", headers, "").0;
    assert_eq!(models(""), 401);
    assert_eq!(models("Authorization: Bearer 0123456789abcdeF\r\n"), 401);
    assert_eq!(models("Authorization: Bearer 0123456789abcdef\r\n"), 200);
    assert_eq!(models("Host: imp.example.org\r\nAuthorization: Bearer 0123456789abcdef\r\n"), 200);
    assert_eq!(server.send("GET /health", "", "").0, 200);
    // Who is refused before all is sent still hears why.
    let long = "x".repeat(10 << 20);
    for (path, key, status) in [("/v1/chat/completions", "no", 401), ("/chat/completions", "0123456789abcdef", 404)] {
        let headers = format!("{JSON}Authorization: Bearer {key}\r\n");
        assert_eq!(server.send(&format!("POST {path}"), &headers, &long).0, status);
    }
}

#[test]
fn a_server_ends_when_it_is_asked_to() {
    let mut server = Server::start(&[], None);
    assert_eq!(server.send("GET /health", "", "").0, 200);
    let id = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(&server.address).is_err());
}
