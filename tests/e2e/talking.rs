//! `imp-flow ask` and `chat`, and what they find under which name. `serving.rs` has the same model.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::LazyLock,
};

use serde_json::Value;

use crate::support::{Output, SMALL, Space};

/// A folder in which a small model was trained.
pub(crate) static TRAINED: LazyLock<Space> = LazyLock::new(|| {
    let space = Space::shared("trained");
    space.write("small.toml", SMALL);
    space.succeed(&["run", "small.toml", "--until", "quantize,pope"]);
    space
});

/// Makes the emulated device the machine's GPU: the same kernels and launches as on a card, run by the CPU.
pub(crate) const EMULATED: (&str, &str) = ("IMP_FLOW_EMULATED_GPU", "0");

const IMAGE: &str = "artifacts/small/shapes/eval/images/000000000001.png";

/// Runs the program with `lines` on its standard input.
fn say(args: &[&str], lines: &str) -> Output {
    let mut command: Command = TRAINED.command(args);
    command.envs([EMULATED]).env_remove("CUDA_VISIBLE_DEVICES");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that has ended reads no more.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_model_has_the_names_of_its_folder_and_of_its_stage() {
    let ask = |model: &str| TRAINED.succeed(&["ask", model, "Is there a circle?", "--image", IMAGE]).stdout;
    let answer = ask("artifacts/small/merge");
    for name in ["merge", "small/merge", "./artifacts/small/merge/"] {
        assert_eq!(ask(name), answer, "{name}");
    }
    assert!(!ask("quantize").is_empty());
    for (model, words) in [
        (
            "mergee",
            "`mergee` is neither the folder of a model here nor a stage in HERE/small.toml\n  help: did you mean `merge`?",
        ),
        ("pope", "the stage `pope` of the kind eval makes no model to talk to"),
        ("vqa_4bit", "stage `vqa_4bit` has no result yet"),
        ("other/merge", "there is no folder `other/merge` here, and no model at `artifacts/other/merge`"),
        ("./merge", "there is no such folder"),
        ("small.toml", "this file is no model by itself"),
    ] {
        let output = TRAINED.run(&["ask", model, "What?"]);
        assert_eq!(output.code, Some(2), "{model}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{model}: {}", output.stderr);
    }
    let nowhere = Space::new();
    let output = nowhere.run(&["chat", "merge"]);
    let words = "there is no folder `merge` here, and there are no runs in the cache `cache`";
    assert!(output.code == Some(2) && output.stderr.contains(words), "{}", output.stderr);
    assert!(!nowhere.path("cache").exists(), "it only looks");
}

#[test]
fn a_model_is_asked_on_a_gpu() {
    let ask = |gpu: Option<&str>, args: &[&str]| {
        let args = [&["ask", "merge", "Is there a circle?", "--image", IMAGE], args].concat();
        let mut command = TRAINED.command(&args);
        command.env_remove("CUDA_VISIBLE_DEVICES").envs(gpu.map(|gpu| (EMULATED.0, gpu)));
        TRAINED.output(&mut command)
    };
    let cpu = ask(None, &[]);
    assert_eq!((cpu.code, cpu.stderr.contains("warning")), (Some(0), false), "{}", cpu.stderr);
    let exact = ask(Some("0"), &["--device", "cuda", "--precision", "f32"]);
    assert_eq!((exact.code, &exact.stdout), (Some(0), &cpu.stdout), "{}", exact.stderr);
    assert!(cpu.stderr.contains("on the CPU") && exact.stderr.contains("on the GPU"), "{}", exact.stderr);
    let chat = ["chat", "merge", "--image", IMAGE, "--device", "cuda", "--precision", "f32"];
    let said = say(&chat, "Is there a circle?\n");
    assert_eq!((said.code, said.stdout.trim()), (Some(0), cpu.stdout.trim()), "{}", said.stderr);
    let rounded = ask(Some("0"), &["--device", "auto"]);
    assert_eq!((rounded.code, rounded.stdout.is_empty()), (Some(0), false), "{}", rounded.stderr);
    assert!(!rounded.stderr.contains("warning"), "{}", rounded.stderr);

    let without = ask(None, &["--device", "auto"]);
    assert_eq!((without.code, &without.stdout), (Some(0), &cpu.stdout), "{}", without.stderr);
    assert!(without.stderr.contains("warning: it computes on the CPU: "), "{}", without.stderr);
    let refused = ask(None, &["--device", "cuda"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("ask it on the CPU with `--device cpu`"), "{}", refused.stderr);
    // It fills up while the model is loaded, while it reads the image, while it answers, or not at all.
    let enough = (0..10).find(|doubled| {
        let full = ask(Some(&format!("0:{}", 100_000_u32 << doubled)), &["--device", "cuda"]);
        let said = full.stderr.contains("error: the GPU's memory is full: ");
        assert_eq!(full.code, Some(i32::from(said)), "{}", full.stderr);
        assert!(!full.stderr.contains("panicked"), "{}", full.stderr);
        !said
    });
    assert!(enough > Some(1), "{enough:?}");
    let unknown = ask(None, &["--device", "gpu"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
}

#[test]
fn a_script_talks_line_by_line() {
    let lines = format!("Is there a circle?\n\nWhat is it?\n/reset\n/image {IMAGE}\nIs there a circle?\n");
    let output = say(&["chat", "merge", "--image", IMAGE, "--json"], &lines);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let replies: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second, again] = &*replies else { panic!("{}", output.stdout) };
    let number = |reply: &Value, key: &str| reply[key].as_u64().unwrap();
    assert_eq!(number(first, "reused"), 0);
    assert!(number(second, "reused") >= number(first, "positions"), "only what is new is read");
    assert_eq!((&again["answer"], &again["positions"]), (&first["answer"], &first["positions"]));
    assert!(number(again, "reused") < number(second, "reused"), "the conversation began anew");

    // The same in words: answers on standard output, all else on standard error.
    let plain = say(&["chat", "merge", "--image", IMAGE], &lines);
    let answers: Vec<&str> = replies.iter().map(|reply| reply["answer"].as_str().unwrap()).collect();
    assert_eq!(plain.stdout, answers.join("\n") + "\n");
    assert!(plain.stderr.contains(" positions in ") && plain.stderr.contains("begins anew, without images"));
    // And as `ask` answers.
    let asked = TRAINED.succeed(&["ask", "merge", "Is there a circle?", "--image", IMAGE]);
    assert_eq!(asked.stdout.trim_end(), first["answer"].as_str().unwrap());
    let brief = say(&["chat", "merge", "--system", "Be brief.", "--json"], "What?");
    let usual = say(&["chat", "merge", "--json"], "What?");
    let positions = |output: &Output| serde_json::from_str::<Value>(&output.stdout).unwrap()["positions"].clone();
    assert_ne!(positions(&brief), positions(&usual));
}

#[test]
fn a_script_ends_where_it_is_not_answered() {
    for (args, lines, code, words) in [
        (&[][..], "/rest\nWhat?\n", 1, "there is no command /rest\n  help: /help lists them"),
        (&[], "/image\n", 1, "/image needs a file"),
        (&[], "/image none.png\n", 1, "none.png"),
        (&[], "/image small.toml\nWhat?\n", 1, "image 1 of the conversation: this is not a PNG"),
        (&[], "a</s>b\n", 1, "a text contains `</s>`"),
        (&[], &*format!("{}\n", "word ".repeat(5000)), 1, "ask a shorter question"),
        (&["--image", "none.png"], "What?\n", 1, "none.png"),
        (&["--top-p", "0"], "What?\n", 2, "--top-p must be above 0"),
    ] {
        let output = say(&[&["chat", "merge"], args].concat(), lines);
        assert_eq!(output.code, Some(code), "{}", output.stderr);
        assert!(output.stderr.contains(words), "{}", output.stderr);
        assert_eq!(output.stdout, "");
    }
    assert_eq!(say(&["chat", "merge"], "/help\n/quit\nWhat?\n").stdout, "");
}
