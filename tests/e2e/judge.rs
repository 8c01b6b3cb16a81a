//! Scores existing answers without a model, by a judge whose endpoint is in the machine's settings.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    thread,
};

use serde_json::{Value, json};

use crate::support::Space;

const PIPELINE: &str = r#"
[stages.questions]
kind = "download"
source = "questions"
[stages.given]
kind = "download"
source = "given"
[stages.score]
kind = "eval"
benchmark = "mmvet"
data = "questions"
answers = "given"
judge = { model = "a-judge", runs = 1 }
"#;

/// A judge that scores every answer 0.5. Returns its address.
fn judge() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).unwrap() > 2 {
                if let Some(rest) = line.to_lowercase().strip_prefix("content-length: ") {
                    length = rest.trim().parse().unwrap();
                }
                line.clear();
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let body = json!({"model": "a-judge-1", "choices": [{"message": {"content": "0.5"}}]}).to_string();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
                .unwrap();
        }
    });
    address
}

#[test]
fn the_endpoint_in_the_machines_settings_reaches_the_stage() {
    let space = Space::new();
    let question = |number: u32| {
        let name = format!("v1_{number}");
        (name, json!({"imagename": "x.png", "question": "What?", "answer": "red", "capability": ["rec"]}))
    };
    let questions: Value = Value::Object([question(0), question(1)].into_iter().collect());
    let answer = |number: u32| json!({"question_id": number, "prompt": "What?", "text": "red"}).to_string();
    space
        .write("p.toml", PIPELINE)
        .write("questions/mm-vet.json", questions.to_string())
        .write("questions/mm-vet_evaluator.py", "prompt = \"\"\"Rubric\"\"\"")
        .write("given/answers.jsonl", format!("{}\n", answer(0)));
    let without = space.run(&["run", "p.toml"]);
    assert_eq!(without.code, Some(1));
    assert!(without.stderr.contains("no endpoint is set for the judge `a-judge`"), "{}", without.stderr);

    space.write("imp-flow.toml", format!("judge_endpoint = \"{}\"\n", judge()));
    let incomplete = space.run(&["run", "p.toml"]);
    assert_eq!(incomplete.code, Some(1));
    assert!(
        incomplete.stderr.contains("HERE/given/answers.jsonl: there is no answer to question 1"),
        "{}",
        incomplete.stderr
    );

    space.write("given/answers.jsonl", format!("{}\n{}\n", answer(1), answer(0)));
    let scored = space.succeed(&["run", "p.toml"]).stdout;
    assert!(scored.contains("  total 50 %\n"), "{scored}");
    assert!(space.succeed(&["show", "score"]).stdout.contains(" rec 50 %\n"), "the parts of the total");
}
