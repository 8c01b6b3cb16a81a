//! `MM-Vet` without a judge, and with a test server as the judge.
// Figures must equal the official ones digit for digit.
#![allow(clippy::unwrap_used, clippy::float_cmp)]
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::*;
use crate::{
    eval::figures::assert_declared,
    eval::tests::{answers_of, config, fixture, fixture_text, job},
    net::proxy::Proxies,
    testing::Trial,
};

fn parsed() -> MmVet {
    let text = fixture_text("mm-vet/mm-vet.json");
    MmVet::parse(&text, &Images::in_folder("images"), &config("mmvet")).unwrap()
}

#[test]
fn without_a_judge_there_are_answers_for_the_official_evaluator() {
    let mmvet = parsed();
    let answers = answers_of(&mmvet, "mm-vet/answers.jsonl");
    assert_eq!(mmvet.questions[0].prompt, "Question 0?");
    assert_eq!(mmvet.score(&answers, &job()).unwrap(), Scores::default());
    let upload: Value = serde_json::from_slice(&mmvet.uploads(&answers).unwrap()[0].1).unwrap();
    assert_eq!(upload["v1_3"], "answer 3 | with pipe\nand newline");
    assert_eq!(upload.as_object().unwrap().len(), 8);
}

/// The judge's successive replies to each question. Two replies to question 1 are not valid scores, and no reply to question
/// 6 is.
const REPLIES: [&[&str]; 8] = [
    &["0.5", "0.4"],
    &["yes", "2.0", "1.0", "0.9"],
    &["0.0 (wrong)"],
    &["0.3\n"],
    &["1"],
    &["0.7", "0.3"],
    &["?"],
    &["0.9", "1.0"],
];

/// A server that acts as the judge, but refuses the first request. Returns its address, and the requests it gets.
fn server() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    thread::spawn(move || {
        let mut counts = [0; 8];
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let (head, body) = request(&stream);
            if number == 0 {
                write!(stream, "HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                continue;
            }
            assert!(head.starts_with("POST /v1/chat/completions ") && head.contains("Bearer secret"), "{head}");
            let text = body["messages"][0]["content"].as_str().unwrap();
            let question = (0..8).find(|n| text.contains(&format!("Question {n}? |"))).unwrap();
            let replies = REPLIES[question];
            let content = replies[counts[question].min(replies.len() - 1)];
            counts[question] += 1;
            log.lock().unwrap().push(body);
            let answer = json!({"model": "judge-1", "choices": [{"message": {"content": content}}]}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
            stream.write_all((head + &answer).as_bytes()).unwrap();
        }
    });
    (address, asked)
}

fn request(stream: &TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).unwrap() > 2 {
        head += &std::mem::take(&mut line);
    }
    let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head.replace("authorization: ", "Authorization: "), serde_json::from_slice(&body).unwrap())
}

fn judged_by(address: &str) -> MmVet {
    judged_through(&Proxies::default(), address)
}

fn judged_through(proxies: &Proxies, address: &str) -> MmVet {
    let judge = Judge::new(address, Some("secret".into()), "judge", Duration::ZERO, proxies);
    MmVet { jury: Some(Jury { judge, rubric: "Rubric\n".into(), runs: 2 }), ..parsed() }
}

/// Expected: the official evaluator's arithmetic, run in Python with `NumPy` on the same scores.
#[test]
fn a_judge_gives_the_official_figures_and_is_asked_only_once() {
    let (address, asked) = server();
    let mmvet = judged_by(&address);
    let answers = answers_of(&mmvet, "mm-vet/answers.jsonl");
    let work = tempfile::tempdir().unwrap();
    let job = || Trial::new(work.path(), &[]).job();
    let scores = mmvet.score(&answers, &job()).unwrap();
    assert_declared(&scores);
    assert_eq!(scores.figures[0].0, "total");
    let figures = BTreeMap::from([
        ("total", 51.9),
        ("ocr", 72.5),
        ("math", 70.0),
        ("rec", 35.0),
        ("know", 15.0),
        ("gen", 30.0),
        ("spat", 50.0),
    ]);
    let by_name: BTreeMap<&str, f64> = scores.figures.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(by_name, figures);
    assert_eq!((&scores.detail["std"], &scores.detail["runs"]), (&json!(3.1), &json!([55.0, 48.8])));
    assert_eq!(
        scores.detail["integrations"],
        json!({
            "math_ocr": 70.0, "rec": 47.5, "know_rec": 0.0, "gen_know_rec": 30.0, "ocr": 100.0, "ocr_rec_spat": 50.0,
        })
    );
    assert_eq!(scores.detail["verdicts"].as_array().unwrap().len(), 16);

    let requests = asked.lock().unwrap().len();
    let first = asked
        .lock()
        .unwrap()
        .iter()
        .find(|body| body["messages"][0]["content"].as_str().unwrap().contains("Question 0?"))
        .cloned();
    let expected = json!({"model": "judge", "max_tokens": 3, "temperature": 0.0, "messages": [
        {"role": "user", "content": "Rubric\n\nQuestion 0? | -1 <AND> -5 | answer 0 | "}]});
    assert_eq!(first, Some(expected));
    let temperatures: Vec<f64> = asked
        .lock()
        .unwrap()
        .iter()
        .filter(|body| body["messages"][0]["content"].as_str().unwrap().contains("Question 6?"))
        .map(|body| body["temperature"].as_f64().unwrap())
        .collect();
    assert_eq!(temperatures, [0.0, 0.0, 0.5, 1.0, 1.5, 0.0, 0.0, 0.5, 1.0, 1.5]);

    // Resumed after some verdicts, it requests only the others.
    let log = work.path().join("checkpoint/verdicts.jsonl");
    let lines: Vec<String> = std::fs::read_to_string(&log).unwrap().lines().map(|line| format!("{line}\n")).collect();
    std::fs::write(&log, lines[..15].concat() + "{\"question\": 7, \"ru").unwrap();
    let again = mmvet.score(&answers, &job()).unwrap();
    assert_eq!(again.figures, scores.figures);
    assert_eq!(asked.lock().unwrap().len(), requests + 1);
}

#[test]
fn an_endpoint_that_refuses_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            request(&stream);
            let body = "no such key";
            write!(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    let mmvet = judged_by(&address);
    let work = tempfile::tempdir().unwrap();
    let error = mmvet.score(&vec![String::new(); 8], &Trial::new(work.path(), &[]).job()).unwrap_err();
    assert!(error.to_string().contains("/chat/completions: 401 Unauthorized: no such key"), "{error}");
    assert!(error.help().unwrap().contains("judge_endpoint"), "{error:?}");
}

#[test]
fn a_judge_is_asked_through_a_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let (head, body) = request(&stream);
            let said = format!("{} for {}", head.lines().next().unwrap_or_default(), body["model"]);
            write!(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n{said}", said.len()).unwrap();
        }
    });
    let proxies = Proxies::of(|name| (name == "http_proxy").then(|| proxy.as_str().into())).unwrap();
    let mmvet = judged_through(&proxies, "http://judge.example/v1");
    let work = tempfile::tempdir().unwrap();
    let error = mmvet.score(&vec![String::new(); 8], &Trial::new(work.path(), &[]).job()).unwrap_err().to_string();
    assert!(error.contains("POST http://judge.example/v1/chat/completions HTTP/1.1 for \"judge\""), "{error}");
}

#[test]
fn the_rubric_comes_from_the_official_evaluator() {
    let text = |text: &str| Text { text: text.into(), named: "evaluator".into() };
    let script = "import json\n\nprompt = \"\"\"Judge.\n\nA | B\n\"\"\"\nrest = 1\n";
    assert_eq!(rubric(&text(script)).unwrap(), "Judge.\n\nA | B\n");
    let lines: Vec<String> = script.lines().map(|line| format!("{line}\n")).collect();
    let notebook = json!({"cells": [{"source": ["x = 1"]}, {"source": lines}]}).to_string();
    assert_eq!(rubric(&text(&notebook)).unwrap(), "Judge.\n\nA | B\n");
    assert!(rubric(&text("prompt = 3")).unwrap_err().to_string().contains("there is no `prompt"));
}

#[test]
fn a_judge_without_an_endpoint_is_an_error_before_any_answer() {
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("mm-vet/mm-vet.json"), root.path().join("mm-vet.json")).unwrap();
    let config: EvalConfig =
        serde_json::from_value(json!({"benchmark": "mmvet", "judge": {"model": "gpt-4-0613"}})).unwrap();
    let job = Trial::new(Path::new("work"), &[("data", root.path())]).job();
    let read = || MmVet::read(&Files::new(&config, &job)).err().unwrap().to_string();
    assert_eq!(read(), "shown/data/mm-vet_evaluator.ipynb: the file is missing");
    std::fs::write(root.path().join("mm-vet_evaluator.py"), "prompt = \"\"\"x\"\"\"").unwrap();
    assert_eq!(read(), "no endpoint is set for the judge `gpt-4-0613`");
}
