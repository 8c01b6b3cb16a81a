//! Errors in the user's files: exit codes and complete messages, with file, line and remedy.

use crate::support::Space;

/// An error in a pipeline file, and the message.
struct Case {
    name: &'static str,
    pipeline: &'static str,
    stderr: &'static str,
}

const PIPELINES: &[Case] = &[
    Case {
        name: "not TOML",
        pipeline: "name = \"x\"\n[stages.a\nkind = \"download\"\n",
        stderr: "\
error: unclosed table, expected `]`
 --> p.toml:2:10
  |
2 | [stages.a
  |          ^
  |
  = help: this is not valid TOML: strings need quotes, table names need [brackets]
",
    },
    Case {
        name: "no stages",
        pipeline: "name = \"x\"\n",
        stderr: "\
error: this pipeline has no stages
 --> p.toml:1:1
  |
1 | name = \"x\"
  | ^
  |
  = help: add one, as in `[stages.phi]` with `kind = \"download\"`; `imp-flow init` writes an example
",
    },
    Case {
        name: "unknown kind",
        pipeline: "[stages.a]\nkind = \"downlod\"\nsource = \"builtin:shapes\"\n",
        stderr: "\
error: unknown kind of stage `downlod`
 --> p.toml:2:8
  |
2 | kind = \"downlod\"
  |        ^^^^^^^^^ no such kind
  |
  = help: did you mean `download`?
",
    },
    Case {
        name: "no kind",
        pipeline: "[stages.a]\nsource = \"builtin:shapes\"\n",
        stderr: "\
error: stage `a` has no `kind`
 --> p.toml:1:9
  |
1 | [stages.a]
  |         ^
  |
  = help: add `kind = \"...\"`, one of: download, preprocess, pretrain, finetune, merge, quantize, eval, command
",
    },
    Case {
        name: "unknown key",
        pipeline: "[stages.a]\nkind = \"download\"\nsuorce = \"builtin:shapes\"\n",
        stderr: "\
error: stage `a`: unknown key `suorce`
 --> p.toml:3:1
  |
3 | suorce = \"builtin:shapes\"
  | ^^^^^^ not a key of this table
  |
  = help: did you mean `source`?
",
    },
    Case {
        name: "names of other programs, all at once",
        pipeline: "[stages.a]\nkind = \"finetune\"\nmodel = \"m\"\ndata = \"d\"\nnum_train_epochs = 1\nbf16 = true\n[stages.a.lora]\nranks = 4\n",
        stderr: "\
error: stage `a`: unknown key `num_train_epochs`
 --> p.toml:5:1
  |
5 | num_train_epochs = 1
  | ^^^^^^^^^^^^^^^^ not a key of this table
  |
  = help: write `epochs`
error: stage `a`: unknown key `bf16`
 --> p.toml:6:1
  |
6 | bf16 = true
  | ^^^^ not a key of this table
  |
  = help: write `precision = \"bf16\"`
error: stage `a`: unknown key `ranks`
 --> p.toml:8:1
  |
8 | ranks = 4
  | ^^^^^ not a key of this table
  |
  = help: did you mean `rank`?
",
    },
    Case {
        name: "wrong type",
        pipeline: "[stages.a]\nkind = \"download\"\nsource = 3\n",
        stderr: "\
error: stage `a`: `source`: expected a string, found the integer 3
 --> p.toml:3:10
  |
3 | source = 3
  |          ^
",
    },
    Case {
        name: "missing key",
        pipeline: "[stages.a]\nkind = \"download\"\n",
        stderr: "\
error: stage `a`: the key `source` is missing
 --> p.toml:1:9
  |
1 | [stages.a]
  |         ^
  |
  = help: add `source = ...`
",
    },
    Case {
        name: "missing input",
        pipeline: "[stages.m]\nkind = \"merge\"\n",
        stderr: "\
error: stage `m`: the input `model` is missing
 --> p.toml:1:9
  |
1 | [stages.m]
  |         ^
  |
  = help: add `model = \"STAGE\"`, the name of a stage that provides a finetuned model
",
    },
    Case {
        name: "missing stage",
        pipeline: "[stages.lora]\nkind = \"download\"\nsource = \"builtin:tiny-phi\"\n[stages.m]\nkind = \"merge\"\nmodel = \"lorra\"\n",
        stderr: "\
error: stage `m`: its input `model` names the stage `lorra`, which does not exist
 --> p.toml:6:9
  |
6 | model = \"lorra\"
  |         ^^^^^^^ no such stage
  |
  = help: did you mean `lora`?
",
    },
    Case {
        name: "cycle",
        pipeline: "[stages.a]\nkind = \"merge\"\nmodel = \"b\"\n[stages.b]\nkind = \"quantize\"\nmodel = \"a\"\n",
        stderr: "\
error: stages wait for each other: a -> b -> a
 --> p.toml:1:9
  |
1 | [stages.a]
  |         ^ needs itself
  |
  = help: an input must come from a stage that does not depend on this one
",
    },
    Case {
        name: "missing source",
        pipeline: "[stages.a]\nkind = \"download\"\nsource = \"my/data\"\n",
        stderr: "\
error: stage `a`: can't read HERE/my/data: No such file or directory (os error 2)
 --> p.toml:3:10
  |
3 | source = \"my/data\"
  |          ^^^^^^^^^
  |
  = help: relative paths start from the folder of the pipeline file; a repository of the Hugging Face hub is written `hf://my/data`
",
    },
    Case {
        name: "unknown variable",
        pipeline: "[vars]\nrank = 8\n[stages.a]\nkind = \"download\"\nsource = \"${rnak}\"\n",
        stderr: "\
error: no variable `rnak`
 --> p.toml:5:10
  |
5 | source = \"${rnak}\"
  |          ^^^^^^^^^
  |
  = help: did you mean `rank`?
",
    },
    Case {
        name: "extends itself",
        pipeline: "extends = \"p.toml\"\n",
        stderr: "\
error: this pipeline extends itself
 --> p.toml:1:11
  |
1 | extends = \"p.toml\"
  |           ^^^^^^^^
  |
  = help: remove one `extends` from the cycle
",
    },
];

#[test]
fn errors_in_a_pipeline_are_shown_with_their_position() {
    for case in PIPELINES {
        let space = Space::new();
        space.write("p.toml", case.pipeline);
        for verb in ["run", "plan"] {
            let output = space.run(&[verb, "p.toml"]);
            assert_eq!(output.stderr, case.stderr, "{} ({verb})", case.name);
            assert_eq!(output.code, Some(2), "{} ({verb})", case.name);
        }
        assert!(!space.path("cache").exists(), "{}: an error must not create a cache", case.name);
    }
}

#[test]
fn the_right_name_of_a_misspelt_pipeline_is_suggested() {
    let space = Space::new();
    space.write("pipelines/tiny.toml", "");
    let output = space.run(&["run", "pipelines/tinny.toml"]);
    assert!(output.stderr.ends_with("\n  help: did you mean `pipelines/tiny.toml`?\n"), "{}", output.stderr);
}

#[test]
fn a_missing_pipeline_is_reported_with_a_remedy() {
    let output = Space::new().run(&["run", "nope.toml"]);
    assert_eq!(output.code, Some(2));
    assert_eq!(
        output.stderr,
        "error: can't read the pipeline nope.toml: No such file or directory (os error 2)\n  help: give the path \
         of a pipeline file, as in `imp-flow run pipelines/tiny.toml`; `imp-flow init` writes one\n"
    );
}

/// An error in the user's data: how to cause it, and the complete message.
struct Broken {
    name: &'static str,
    file: &'static str,
    damage: fn(Vec<u8>) -> Option<Vec<u8>>,
    stderr: &'static str,
}

const FOLDERS: &[Broken] = &[
    Broken { name: "missing annotations", file: "shapes/instruct.json", damage: |_| None, stderr: "\
error: stage `records`: HERE/mine/shapes/instruct.json: the annotation file is missing
  help: `annotations` must name a file in the data folder; it has: counting.json, pretrain.json" },
    Broken {
        name: "broken JSON record",
        file: "shapes/instruct.json",
        damage: |bytes| replace_line(bytes, 4, "{\"id\": \"3\", \"image\": , \"conversations\": []},"),
        stderr: "\
error: stage `records`: HERE/mine/shapes/instruct.json:4: 1 record is unusable, and `max_rejected` allows 0
record 3 (line 4, id 3): there is something that is not a JSON value
  help: correct or remove them, or set `max_rejected` to the number of records that may be left out",
    },
    Broken {
        name: "wrong roles",
        file: "shapes/instruct.json",
        damage: |bytes| {
            replace_line(bytes, 3, "{\"id\": \"two\", \"image\": \"000000000001.png\", \"conversations\": [{\"from\": \"gpt\", \"value\": \"Hi\"}]},")
        },
        stderr: "\
error: stage `records`: HERE/mine/shapes/instruct.json:3: 1 record is unusable, and `max_rejected` allows 0
record 2 (line 3, id two): the conversation is empty
  help: correct or remove them, or set `max_rejected` to the number of records that may be left out",
    },
    Broken { name: "missing image", file: "shapes/images/000000000005.png", damage: |_| None, stderr: "\
error: stage `records`: HERE/mine/shapes/instruct.json:7: 1 record is unusable, and `max_rejected` allows 0
record 6 (line 7, id 000000000005): the image images/000000000005.png is missing
  help: image paths are relative to `image_folder` in the data folder (default: `images`): set it to the folder that holds them, or give the download with the images as `images`; `max_rejected` lets records be left out" },
    Broken {
        name: "unreadable image",
        file: "shapes/images/000000000005.png",
        damage: |bytes| Some(bytes[..bytes.len() / 2].to_vec()),
        stderr: "\
error: stage `records`: HERE/mine/shapes/instruct.json:7: 1 record is unusable, and `max_rejected` allows 0
record 6 (line 7, id 000000000005): the image images/000000000005.png can't be decoded: unexpected end of file
  help: correct or remove them, or set `max_rejected` to the number of records that may be left out",
    },
    Broken { name: "missing tokenizer", file: "phi/tokenizer.json", damage: |_| None, stderr: "\
error: stage `records`: HERE/mine/phi/tokenizer.json: the file is missing
  help: the folder must hold a Hugging Face model with its tokenizer (`tokenizer.json`, or a Llama's `tokenizer.model`)" },
    Broken {
        name: "truncated safetensors",
        file: "phi/model.safetensors",
        damage: |bytes| Some(bytes[..bytes.len() - 100].to_vec()),
        stderr: "\
error: stage `pretrain`: HERE/mine/phi/model.safetensors: this is not a complete safetensors file (incomplete metadata, file not fully covered): download it again
  help: check that this is the model you meant, and that its files are whole",
    },
    Broken {
        name: "another architecture",
        file: "phi/config.json",
        damage: |_| Some(b"{\"model_type\": \"gpt2\"}".to_vec()),
        stderr: "\
error: stage `pretrain`: HERE/mine/phi/config.json: model_type `gpt2` is not supported (supported: phi, qwen2, llama, phi3)
  help: check that this is the model you meant, and that its files are whole",
    },
];

/// Replaces line `number` of a text, counted from 1.
fn replace_line(bytes: Vec<u8>, number: usize, line: &str) -> Option<Vec<u8>> {
    let text = String::from_utf8(bytes).ok()?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines[number - 1] = line;
    Some((lines.join("\n") + "\n").into_bytes())
}

/// A pipeline up to `pretrain`, on local folders.
const ON_FOLDERS: &str = r#"
name = "own"
[stages.shapes]
kind = "download"
source = "mine/shapes"
[stages.phi]
kind = "download"
source = "mine/phi"
[stages.siglip]
kind = "download"
source = "mine/siglip"
[stages.records]
kind = "preprocess"
data = "shapes"
tokenizer = "phi"
annotations = "instruct.json"
template = "phi2"
[stages.pretrain]
kind = "pretrain"
llm = "phi"
vision = "siglip"
data = "records"
max_steps = 1
"#;

#[test]
fn errors_in_the_users_files_are_reported_and_the_cache_stays_intact() {
    let good = Space::new();
    let downloads = crate::support::SMALL.split("[stages.captions]").next().unwrap();
    good.write("data.toml", downloads.replace("name = \"small\"", "name = \"data\"")).succeed(&["run", "data.toml"]);
    for case in FOLDERS {
        let space = Space::new();
        space.write("own.toml", ON_FOLDERS);
        for stage in ["shapes", "phi", "siglip"] {
            crate::support::copy_folder(&good.path("artifacts/data").join(stage), &space.path("mine").join(stage));
        }
        let file = space.path("mine").join(case.file);
        let whole = std::fs::read(&file).unwrap();
        match (case.damage)(whole.clone()) {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let output = space.run(&["run", "-q", "own.toml"]);
        // The path of the log contains the key.
        let message = output.stderr.split("\n  log: ").next().unwrap();
        assert_eq!(message, case.stderr, "{}", case.name);
        assert_eq!(output.code, Some(1), "{}", case.name);
        // Repaired, it runs: the cache was not harmed.
        std::fs::write(&file, whole).unwrap();
        space.succeed(&["run", "own.toml"]);
    }
}

#[test]
fn sources_whose_names_would_change_are_refused() {
    let space = Space::new();
    space.write("src/a.txt\r", "one").write("b\r.txt", "two");
    space.write("p.toml", "[stages.a]\nkind = \"download\"\nsource = \"src\"\n");
    let output = space.run(&["run", "p.toml"]);
    let expected = r#"HERE/src: the file name "a.txt\r" must be UTF-8 without control characters: rename the file"#;
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains(expected), "{}", output.stderr);
    space.write("p.toml", "[stages.a]\nkind = \"download\"\nsource = \"b\\r.txt\"\n");
    let output = space.run(&["run", "p.toml"]);
    assert!(output.stderr.contains(r#"the file name "b\r.txt" must be UTF-8"#), "{}", output.stderr);
}

#[test]
fn a_pipeline_extends_only_regular_files_of_a_limited_size() {
    let space = Space::new();
    space.write("p.toml", "extends = \"/dev/zero\"\n");
    let output = space.run(&["plan", "p.toml"]);
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.starts_with("error: /dev/zero is not a regular file\n --> p.toml:1:11"), "{}", output.stderr);
    space.write("p.toml", "extends = \"large.toml\"\n").write("large.toml", vec![b'\n'; (16 << 20) + 1]);
    for file in ["p.toml", "/dev/zero"] {
        let output = space.run(&["plan", file]);
        assert_eq!(output.code, Some(2));
        assert!(output.stderr.contains("larger than 16 MB"), "{}", output.stderr);
    }
}

#[test]
fn only_the_first_errors_are_shown() {
    use std::fmt::Write;
    let space = Space::new();
    for (count, last) in
        [(20, "unknown kind"), (21, "1 more error is not shown"), (3000, "2980 more errors are not shown")]
    {
        let mut text = String::new();
        for number in 0..count {
            writeln!(text, "[stages.s{number}]\nkind = \"nothing like it\"").unwrap();
        }
        space.write("p.toml", text);
        let output = space.run(&["plan", "p.toml"]);
        assert_eq!(output.code, Some(2));
        assert_eq!(output.stderr.matches("error: unknown kind").count(), 20);
        assert!(output.stderr.contains(&format!("error: {last}")), "{}", output.stderr);
    }
}

#[test]
fn more_cpus_than_any_machine_has_are_refused() {
    let space = Space::new();
    space.write("p.toml", "[stages.a]\nkind = \"synthetic\"\n").write("imp-flow.toml", "cpus = 20000\n");
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("imp-flow.toml: `cpus` must be at most 4096, and is 20000"), "{}", output.stderr);
}
