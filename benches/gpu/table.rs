//! What came out, in words: a summary at the end of a run, and the tables of docs/GPU.md.

use std::{collections::BTreeMap, fmt::Write, fs};

use serde_json::Value;

use crate::{OURS, cases::CASES};

const BEGIN: &str = "<!-- results: written by benches/gpu/run.sh table -->\n";
const END: &str = "<!-- end of results -->\n";

fn lines(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Names what failed and what was left out in the results from line `first` on. Fails if something failed.
pub(crate) fn summary(first: usize) -> bool {
    let path = std::env::var("IMP_FLOW_RESULTS").expect("IMP_FLOW_RESULTS names the results");
    let all = lines(&path).split_off(first);
    let (mut failed, mut ran) = (0, 0);
    for line in &all {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_string();
        if let Some(part) = line["run"].as_str() {
            ran += 1;
            if line["ok"] != true {
                failed += 1;
                println!("FAILED    {part} ({}), after {} s: see the log", text("why"), line["seconds"]);
            }
        } else if let Some(reason) = line["skipped"].as_str() {
            println!("left out  {} by {} {}: {reason}", text("case"), text("side"), text("variant"));
        } else if line["ok"] == false {
            println!("differs   {line}");
        }
    }
    println!("{ran} parts, {failed} failed; results in {path}");
    failed == 0
}

/// Writes the tables between the marks of a document.
pub(crate) fn write(document: &str, results: &[String]) -> bool {
    let all: Vec<Value> = results.iter().flat_map(|path| lines(path)).collect();
    let old = fs::read_to_string(document).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("the document has the mark of the results' beginning");
    let (_, after) = rest.split_once(END).expect("the document has the mark of the results' end");
    let new = format!("{before}{BEGIN}\n{}\n{END}{after}", tables(&all).trim_end());
    fs::write(document, new).unwrap();
    true
}

fn tables(all: &[Value]) -> String {
    let of = |part: &str| all.iter().filter(|line| line["part"] == part).collect::<Vec<_>>();
    let mut text = machine(&of("machine"));
    text += &parts(&all.iter().filter(|line| line["run"].is_string()).collect::<Vec<_>>());
    text += &speed(&of("speed"));
    text += &products(&of("products"));
    text + &profile(&of("profile"))
}

fn machine(lines: &[&Value]) -> String {
    // One sentence for each card: cards may differ from call to call.
    let mut sentences: Vec<String> = Vec::new();
    for line in lines {
        let gigabytes = line["memory"].as_f64().unwrap_or(0.0) / 1e9;
        let sentence = format!(
            "Measured on {}, one {} ({gigabytes:.0} GB), driver for {}, cuBLASLt {}, at commit {}.",
            word(&line["date"]),
            word(&line["card"]),
            word(&line["driver"]),
            word(&line["cublaslt"]),
            word(&line["commit"])
        );
        if !sentences.contains(&sentence) {
            sentences.push(sentence);
        }
    }
    sentences.join("\n") + "\n\n"
}

fn parts(lines: &[&Value]) -> String {
    let mut last: BTreeMap<String, (usize, &Value)> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        last.insert(word(&line["run"]), (at, line));
    }
    let mut last: Vec<(usize, &Value)> = last.into_values().collect();
    last.sort_by_key(|(at, _)| *at);
    let mut text = "| part | outcome | seconds |\n|---|---|---|\n".to_string();
    for (_, line) in last {
        let outcome = if line["ok"] == true { "passed".into() } else { format!("failed ({})", word(&line["why"])) };
        let _ = writeln!(text, "| {} | {outcome} | {} |", word(&line["run"]), word(&line["seconds"]));
    }
    text + "\n"
}

fn speed(lines: &[&Value]) -> String {
    let mut text =
        "| case | side | ms | per second | faster than that side | TFLOP/s | of the card's peak | memory |\n\
                    |---|---|---|---|---|---|---|---|\n"
            .to_string();
    for case in CASES {
        // Of a case that was repeated, the last; sides in the order in which they ran.
        let mut sides: Vec<&Value> = Vec::new();
        for line in lines.iter().filter(|line| line["case"] == case) {
            sides.retain(|old| (&old["side"], &old["variant"]) != (&line["side"], &line["variant"]));
            sides.push(line);
        }
        let is_ours = |line: &Value| line["side"] == OURS && line["variant"].is_null();
        let ours = sides.iter().find(|line| is_ours(line)).and_then(|line| line["ms"].as_f64());
        for line in sides {
            let side = format!("{} {}", word(&line["side"]), word(&line["variant"]));
            let Some(ms) = line["ms"].as_f64() else {
                let _ = writeln!(text, "| {case} | {} | {} | | | | | |", side.trim(), word(&line["skipped"]));
                continue;
            };
            let faster = ours.filter(|_| !is_ours(line)).map(|ours| format!("{:.2}x", ms / ours)).unwrap_or_default();
            let utilisation = line["utilisation"].as_f64().map(|share| format!("{:.0} %", share * 100.0));
            let memory = line["peak_bytes"].as_f64().map(|bytes| format!("{:.1} GB", bytes / 1e9));
            let tflops = line["tflops"].as_f64().map(|tflops| format!("{tflops:.0}"));
            let _ = writeln!(
                text,
                "| {case} | {} | {ms:.1} | {:.1} {} | {faster} | {} | {} | {} |",
                side.trim(),
                line["per_second"].as_f64().unwrap_or_default(),
                word(&line["unit"]),
                tflops.unwrap_or_default(),
                utilisation.unwrap_or_default(),
                memory.unwrap_or_default()
            );
        }
    }
    text + "\n"
}

fn products(lines: &[&Value]) -> String {
    let mut text =
        "| product | rows, inputs, outputs | precision | TFLOP/s | largest difference, of what is allowed |\n\
         |---|---|---|---|---|\n"
            .to_string();
    for line in lines {
        let shape = line["shape"].as_array().map(|sizes| sizes.iter().map(word).collect::<Vec<_>>().join(", "));
        let errors = ["output", "input_gradient", "weight_gradient"].map(|of| line[of].as_f64().unwrap_or(0.0));
        let worst = errors.into_iter().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.1} | {worst:.2}{} |",
            word(&line["name"]),
            shape.unwrap_or_default(),
            word(&line["precision"]),
            line["tflops"].as_f64().unwrap_or_default(),
            if line["ok"] == true { "" } else { ", too much" }
        );
    }
    text + "\n"
}

fn profile(lines: &[&Value]) -> String {
    let mut text = String::new();
    for case in CASES {
        let of_case = || lines.iter().filter(|line| line["case"] == case);
        let Some(whole) = of_case().rfind(|line| line["whole_ms"].is_number()) else { continue };
        let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or_default();
        let _ = writeln!(
            text,
            "`{case}`: {:.1} ms, of which {:.1} ms in {} calls, timed one by one.\n",
            number(whole, "whole_ms"),
            number(whole, "net_ms"),
            word(&whole["calls"])
        );
        text += "| kernel | calls | ms | share |\n|---|---|---|---|\n";
        for line in of_case().filter(|line| line["kernel"].is_string()) {
            let ms = number(line, "net_ms");
            let share = 100.0 * ms / number(whole, "net_ms").max(1e-9);
            let _ = writeln!(text, "| {} | {} | {ms:.2} | {share:.1} % |", word(&line["kernel"]), word(&line["calls"]));
        }
        text += "\n";
    }
    text
}

/// A value as a word, without the quotes of JSON.
fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace(['|', '\n'], " "),
        other => other.to_string(),
    }
}
