//! Sweeps: their points, the stages that points share, and their names.

use crate::support::{DIAMOND, Space, diamond, ran};

/// The diamond whose stage `c` depends on three variables.
fn with_variables() -> String {
    DIAMOND.replace("text = \"c\"", "text = \"${rate} ${name} ${drawn}\"")
}

const SWEPT: &str = r#"
[vars]
rate = 1
[sweep]
"vars.rate" = [1, 2, 3]
"#;

#[test]
fn points_share_common_stages() {
    let space = Space::new();
    let text = DIAMOND.replace("text = \"c\"", "text = \"c ${rate}\"").replace("score = 3.5", "score = \"${rate}\"");
    space.write("p.toml", text + SWEPT);
    let names = ran(&space, &["sweep", "p.toml"]);
    assert_eq!(names, ["a", "b", "c@rate=1", "c@rate=2", "c@rate=3", "d@rate=1", "d@rate=2", "d@rate=3"]);
    for point in ["rate=1", "rate=3"] {
        assert!(space.path(&format!("artifacts/diamond/{point}/b/value.txt")).is_file(), "{point}");
    }
    let compare = space.succeed(&["compare", "--sort", "score"]).stdout;
    assert_eq!(
        compare,
        "point   vars.rate  d.score\n\
         rate=3          3       *3\n\
         rate=2          2        2\n\
         rate=1          1        1\n\n\
         * best in its column\n"
    );
    let csv = space.succeed(&["compare", "--csv"]).stdout;
    assert_eq!(csv, "point,vars.rate,d.score\nrate=1,1,1\nrate=2,2,2\nrate=3,3,3\n");
    // The pipeline without its sweep equals the point `rate=1`, so it is cached.
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("diamond is up to date: 4 of 4 cached"));
    // Values on the command line replace those in the file.
    assert_eq!(ran(&space, &["sweep", "p.toml", "--set", "vars.rate=3,4"]), ["c@rate=4", "d@rate=4"]);
    assert_eq!(ran(&space, &["sweep", "p.toml", "--set", "stages.b.text=b,x", "--set", "vars.rate=1"]).len(), 2);
    // What is the same in all points tells none from another.
    let same = space.succeed(&["compare"]).stdout;
    assert!(!same.lines().next().unwrap().contains("d.score"), "{same}");
    assert!(same.ends_with("\n\nd.score is 1 in all (--all: as columns)\n"), "{same}");
    assert!(space.succeed(&["compare", "--all"]).stdout.lines().next().unwrap().contains("d.score"));
    // A point that shares all stages with another.
    let why = space.succeed(&["why", "d", "--point", "text=x"]).stdout;
    assert!(why.starts_with("d@text=x is cached\n"), "{why}");
    let several = space.run(&["show", "d"]);
    assert!(several.stderr.contains("choose one: --point text=b, or --point text=x"), "{}", several.stderr);
}

#[test]
fn sweeps_are_grids_zips_and_random_draws() {
    let space = Space::new();
    let text = with_variables();
    let sweep = r#"
[vars]
rate = 0
name = ""
drawn = 0
[sweep]
vars.rate = [1, 2]
[[sweep.zip]]
label = ["first", "second"]
"vars.name" = ["x", "y"]
"stages.d.text" = ["dx", "dy"]
[sweep.random]
count = 2
"vars.drawn" = { log_uniform = [1e-5, 1e-3] }
"#;
    space.write("p.toml", text + sweep);
    let plan = space.succeed(&["sweep", "p.toml", "--dry-run"]).stdout;
    assert!(
        plan.contains("0 of 18 cached, 18 would run"),
        "2 shared stages, and 2 for each of 2 x 2 x 2 points: {plan}"
    );
    assert!(plan.contains("  c@rate=1,first,draw=1 "), "{plan}");
    let again = space.succeed(&["sweep", "p.toml", "--dry-run"]).stdout;
    assert_eq!(plan, again, "draws are the same every time");
    // The command line also overrides keys of a zip or a draw. A value that is given twice makes only one point.
    let args = ["sweep", "p.toml", "--dry-run", "--set", "vars.name=one", "--set", "vars.drawn=5"];
    let plan =
        space.succeed(&[&args[..], &["--set", r#"stages.d.text="a\"b","c","c""#, "--set", "vars.rate=1"]].concat());
    assert!(plan.stdout.contains("run     c  first run") || plan.stdout.contains("after   c "), "{}", plan.stdout);
    assert!(plan.stdout.contains("d@text=a-b") && plan.stdout.contains("0 of 5 cached"), "{}", plan.stdout);
}

#[test]
fn errors_in_a_sweep_are_reported() {
    let space = Space::new();
    let text = with_variables();
    for (sweep, message, help) in [
        ("\"vars.rat\" = [1]", "`vars.rat`: no variable `rat`", "did you mean `rate`?"),
        ("\"stages.e.text\" = [\"1\"]", "`stages.e.text`: no stage `e`", "known: a, b, c, d"),
        ("\"vars.rate\" = 1", "`vars.rate` needs a list of values", "as in `\"vars.lora_rank\" = [64, 128]`"),
        ("zip = { \"vars.rate\" = [1, 2], \"vars.name\" = [\"x\"] }", "`vars.name` has 1 value(s)", "the same number"),
        ("random = { \"vars.rate\" = { uniform = [0, 1] } }", "`sweep.random` needs a `count`", "add `count = 20`"),
        (
            "random = { count = 2, \"vars.rate\" = { uniform = [1, 0] } }",
            "needs two numbers, the smaller first",
            "uniform = [0.0",
        ),
        ("\"stages.d.txt\" = [\"1\"]", "stage `d`: unknown key `txt`", "did you mean `text`?"),
        ("vars.rate = [1]\nrandom = { count = 1, \"vars.rate\" = { choice = [1] } }", "swept over twice", ""),
        ("", "there is nothing to sweep over", "give each key its values"),
    ] {
        space.write("p.toml", format!("{text}\n[vars]\nrate = 0\nname = \"\"\ndrawn = 0\n[sweep]\n{sweep}\n"));
        let output = space.run(&["sweep", "p.toml"]);
        assert_eq!(output.code, Some(2), "{sweep}: {}", output.stderr);
        assert!(output.stderr.contains(message) && output.stderr.contains(help), "{sweep}: {}", output.stderr);
    }
    space.write("p.toml", DIAMOND);
    assert!(space.run(&["sweep", "p.toml"]).stderr.contains("there is nothing to sweep over"));
}

#[test]
fn errors_in_set_are_reported() {
    let space = diamond();
    for (set, message, help) in [
        ("stages.dd.text=1", "there is no stage `dd`", "known: a, b, c, d"),
        ("vars.x=1", "there is no variable `x`", ""),
        ("stages.d.files=1,2", "several values", "`imp-flow sweep` takes several"),
        ("stages.d.files=-1", "expected a non-negative integer, found the integer -1", ""),
        ("stages.d.files=\"3\"", "expected a non-negative integer", "remove the quotes: `files = 3`"),
        ("d.files=3", "unknown key `d`", "did you mean `stages.d`?"),
        ("stages.d.after='[b,c]'", "names the stage `[b,c]`", "the names in a list need quotes"),
    ] {
        let output = space.run(&["run", "p.toml", "--set", set]);
        assert_eq!(output.code, Some(2), "{set}");
        assert!(output.stderr.contains(message) && output.stderr.contains(help), "{set}: {}", output.stderr);
    }
}

#[test]
fn a_point_may_have_the_name_of_a_stage() {
    let space = diamond();
    space.write(
        "p.toml",
        format!("{DIAMOND}[[sweep.zip]]\nlabel = [\"a\", \"x\"]\n\"stages.d.text\" = [\"1\", \"2\"]\n"),
    );
    space.succeed(&["run", "p.toml"]);
    space.succeed(&["sweep", "p.toml"]);
    let inside: Vec<_> = std::fs::read_dir(space.path("artifacts/diamond/a")).unwrap().collect();
    assert_eq!(inside.len(), 1, "no link inside the artifact itself: {inside:?}");
    assert!(space.path("artifacts/diamond/a-2/d/value.txt").is_file());
    assert!(space.path("artifacts/diamond/x/d/value.txt").is_file());
}
