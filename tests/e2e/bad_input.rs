//! Every mistake gets the right exit code and a message that names file, line and remedy, word for word.

use crate::support::Space;

/// A mistake in a pipeline file: what is written, and what is said.
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
  = help: this is not valid TOML: strings need quotes, tables stand in [brackets]
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
  = help: add `kind = \"...\"`, one of: download, preprocess, pretrain, finetune, merge, quantize, eval
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
  = help: add `model = \"STAGE\"`, a stage that gives a finetuned model
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
  = help: an input must come from a stage that does not use this one
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
  = help: a relative path is meant from the folder of the pipeline file
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
  = help: remove one `extends` of the circle
",
    },
];

#[test]
fn mistakes_in_a_pipeline_are_shown_where_they_stand() {
    for case in PIPELINES {
        let space = Space::new();
        space.write("p.toml", case.pipeline);
        for verb in ["run", "plan"] {
            let output = space.run(&[verb, "p.toml"]);
            assert_eq!(output.stderr, case.stderr, "{} ({verb})", case.name);
            assert_eq!(output.code, Some(2), "{} ({verb})", case.name);
        }
        assert!(!space.path("cache").exists(), "{}: nothing was touched", case.name);
    }
}

#[test]
fn a_missing_pipeline_says_what_to_do() {
    let output = Space::new().run(&["run", "nope.toml"]);
    assert_eq!(output.code, Some(2));
    assert_eq!(
        output.stderr,
        "error: can't read the pipeline nope.toml: No such file or directory (os error 2)\n  help: give the path \
         of a pipeline file, as in `imp-flow run pipelines/tiny.toml`; `imp-flow init` writes one\n"
    );
}
