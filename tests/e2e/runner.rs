//! The runner by itself, on stages that take no time: choosing stages, failures, retries, resources, sweeps, and questions
//! about what ran.

use crate::support::{Output, Space};

/// `a -> b -> d` and `a -> c -> d`.
const DIAMOND: &str = r#"
name = "diamond"
[stages.a]
kind = "synthetic"
text = "a"
[stages.b]
kind = "synthetic"
after = "a"
text = "b"
[stages.c]
kind = "synthetic"
after = "a"
text = "c"
[stages.d]
kind = "synthetic"
after = ["b", "c"]
text = "d"
score = 3.5
"#;

fn diamond() -> Space {
    let space = Space::new();
    space.write("p.toml", DIAMOND);
    space
}

/// The names of the stages that ran.
fn ran(space: &Space, args: &[&str]) -> Vec<String> {
    let output = space.succeed(&[&["--json"], args].concat());
    finished(&output)
}

fn finished(output: &Output) -> Vec<String> {
    let events = output.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let finished = events.filter(|event| event["event"] == "finished");
    let mut names: Vec<String> = finished.map(|event| event["stage"].as_str().unwrap().to_string()).collect();
    names.sort_unstable();
    names
}

#[test]
fn stages_are_chosen_forced_and_left_out() {
    let space = diamond();
    let refused = space.run(&["run", "p.toml", "--only", "d"]);
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("stage `d` needs `b`, which is left out and not in the cache")
            && refused.stderr.contains("= help: run `b` first: `--until b`"),
        "{}",
        refused.stderr
    );
    assert!(space.run(&["run", "p.toml", "--until", "e"]).stderr.contains("--until e: there is no such stage"));
    assert_eq!(ran(&space, &["run", "p.toml", "--until", "b"]), ["a", "b"]);
    assert_eq!(space.stages_in("diamond", "left out"), ["c", "d"]);
    assert_eq!(ran(&space, &["run", "p.toml", "--from", "b", "--until", "c"]), [""; 0], "nothing is in both");
    assert_eq!(ran(&space, &["run", "p.toml"]), ["c", "d"]);
    // It gives the same bytes, so what uses it stays.
    assert_eq!(ran(&space, &["run", "p.toml", "--force", "a"]), ["a"]);
    let plan = space.succeed(&["run", "p.toml", "--dry-run", "--force", "b"]).stdout;
    assert!(plan.contains("run     b  forced\n") && plan.contains("2 of 4 cached, 2 would run"), "{plan}");
}

#[test]
fn after_a_failure_the_rest_runs_if_the_person_wants_it() {
    let space = Space::new();
    let broken = DIAMOND.replace("text = \"b\"", "text = \"b\"\nfail = \"out of luck\"");
    space.write("p.toml", broken + "[stages.e]\nkind = \"synthetic\"\nafter = \"c\"\n");
    let args = ["run", "p.toml", "--keep-going", "--jobs", "1"];
    let output = space.run(&args);
    assert_eq!(output.code, Some(1));
    let (ran, skipped) = (space.stages_in("diamond", "ran"), space.stages_in("diamond", "skipped"));
    assert_eq!((ran, skipped), (vec!["a".into(), "c".into(), "e".into()], vec!["d".to_string()]));
    let stderr = output.stderr;
    assert!(stderr.contains("error: stage `b`: out of luck\n  | "), "{stderr}");
    assert!(stderr.contains("about to fail\n  help: take `fail` out\n  log: HERE/cache/work/"), "{stderr}");
    // Without it, nothing new starts: `c` comes after `b` where only one runs at a time.
    let strict = Space::new();
    strict.write("p.toml", space.read("p.toml"));
    assert_eq!(strict.run(&["run", "p.toml", "--jobs", "1"]).code, Some(1));
    assert_eq!(strict.stages_in("diamond", "ran"), ["a"]);
}

#[test]
fn what_may_be_over_soon_is_tried_again_and_nothing_else() {
    let space = diamond();
    space.write("imp-flow.toml", "retries = 2\nretry_seconds = 0\n");
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b\"\nflaky = 2"));
    let output = space.succeed(&["run", "p.toml"]);
    assert!(output.stderr.contains("b: no luck at try 2; the stage is tried again in 0.00 s"), "{}", output.stderr);
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b2\"\nflaky = 3"));
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("error: stage `b`: no luck at try 3"), "{}", output.stderr);
    // A process that dies is no network.
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b3\"\ncrash = true"));
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("its process was ended by signal 6"), "{}", output.stderr);
}

#[test]
fn what_can_never_run_here_is_refused_before_anything_runs() {
    let space = diamond();
    space.write("imp-flow.toml", "memory = \"2GB\"\ngpus = [0]\n");
    let wishes = "text = \"d\"\nruntime = { memory = \"3GB\", gpus = 2 }";
    space.write("p.toml", DIAMOND.replace("text = \"d\"", wishes));
    let plan = space.run(&["plan", "p.toml"]);
    assert_eq!(plan.code, Some(2));
    assert!(plan.stderr.contains("stage `d` wants 2 GPUs and this machine has 1"), "{}", plan.stderr);
    space.write("p.toml", DIAMOND.replace("text = \"d\"", wishes).replace("gpus = 2", "gpus = 1"));
    let plan = space.run(&["plan", "p.toml"]);
    assert!(plan.stderr.contains("stage `d` wants 3.0 GB of memory and this machine has 2.0 GB"), "{}", plan.stderr);
    space.write("p.toml", DIAMOND.replace("text = \"d\"", wishes).replace("\"3GB\"", "\"3 apples\""));
    let plan = space.run(&["plan", "p.toml"]);
    assert!(plan.stderr.contains("write a number and a unit, as in `16GB`"), "{}", plan.stderr);
}

#[test]
fn a_stage_sees_the_gpus_that_are_its_own() {
    let space = Space::new();
    space.write("imp-flow.toml", "gpus = [4, 5, 6]\ncpus = 2\n");
    let stage = |name: &str, gpus: usize| {
        let rest = format!("steps = 40\nstep_ms = 10\ntext = \"{name}\"\nruntime = {{ gpus = {gpus} }}\n");
        format!("[stages.{name}]\nkind = \"synthetic\"\n{rest}")
    };
    space.write("p.toml", format!("name = \"p\"\n{}{}{}", stage("a", 2), stage("b", 1), stage("c", 0)));
    space.succeed(&["run", "p.toml"]);
    let gpus = |name: &str| {
        let log = space.succeed(&["log", name]).stdout;
        log.lines().find_map(|line| line.split_once("GPUs: ")).unwrap().1.to_string()
    };
    assert_eq!(["a", "b", "c"].map(gpus), ["4,5", "6", ""]);
}

const SWEPT: &str = r#"
[vars]
rate = 1
[sweep]
"vars.rate" = [1, 2, 3]
"#;

#[test]
fn points_share_what_they_have_in_common() {
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
         * the best of its column\n"
    );
    let csv = space.succeed(&["compare", "--csv"]).stdout;
    assert_eq!(csv, "point,vars.rate,d.score\nrate=1,1,1\nrate=2,2,2\nrate=3,3,3\n");
    // The pipeline by itself is the point with its own values, and so is in the cache.
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("diamond is up to date: 4 of 4 cached"));
    // Values from the command line take the place of those in the file.
    assert_eq!(ran(&space, &["sweep", "p.toml", "--set", "vars.rate=3,4"]), ["c@rate=4", "d@rate=4"]);
    assert_eq!(ran(&space, &["sweep", "p.toml", "--set", "stages.b.text=b,x", "--set", "vars.rate=1"]).len(), 2);
    // One more point of what another had already.
    let why = space.succeed(&["why", "d", "--point", "text=x"]).stdout;
    assert!(why.starts_with("d@text=x is cached\n"), "{why}");
    let several = space.run(&["show", "d"]);
    assert!(several.stderr.contains("choose one: --point text=b, or --point text=x"), "{}", several.stderr);
}

#[test]
fn sweeps_are_grids_zips_and_draws() {
    let space = Space::new();
    let text = DIAMOND.replace("text = \"c\"", "text = \"${rate} ${name} ${drawn}\"");
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
    space.write("p.toml", text.clone() + sweep);
    let plan = space.succeed(&["sweep", "p.toml", "--dry-run"]).stdout;
    assert!(plan.contains("0 of 18 cached, 18 would run"), "2 shared, and two for each of 2 x 2 x 2 points: {plan}");
    assert!(plan.contains("  c@rate=1,first,draw=1 "), "{plan}");
    let again = space.succeed(&["sweep", "p.toml", "--dry-run"]).stdout;
    assert_eq!(plan, again, "draws are the same every time");

    for (sweep, message, help) in [
        ("\"vars.rat\" = [1]", "`vars.rat`: no variable `rat`", "did you mean `rate`?"),
        ("\"stages.e.text\" = [\"1\"]", "`stages.e.text`: no stage `e`", "known: a, b, c, d"),
        (
            "\"vars.rate\" = 1",
            "`vars.rate` must have a list of values to try",
            "as in `\"vars.lora_rank\" = [64, 128]`",
        ),
        ("zip = { \"vars.rate\" = [1, 2], \"vars.name\" = [\"x\"] }", "`vars.name` has 1 value(s)", "equally many"),
        ("random = { \"vars.rate\" = { uniform = [0, 1] } }", "`sweep.random` needs a `count`", "add `count = 20`"),
        ("random = { count = 2, \"vars.rate\" = { uniform = [1, 0] } }", "needs two growing numbers", "uniform = [0.0"),
        ("\"stages.d.txt\" = [\"1\"]", "stage `d`: unknown key `txt`", "did you mean `text`?"),
        ("vars.rate = [1]\nrandom = { count = 1, \"vars.rate\" = { choice = [1] } }", "swept over twice", ""),
        ("", "there is nothing to sweep over", "give each key its values"),
    ] {
        space.write("p.toml", format!("{text}\n[vars]\nrate = 0\nname = \"\"\ndrawn = 0\n[sweep]\n{sweep}\n"));
        let output = space.run(&["sweep", "p.toml"]);
        assert_eq!(output.code, Some(2), "{sweep}: {}", output.stderr);
        assert!(output.stderr.contains(message) && output.stderr.contains(help), "{sweep}: {}", output.stderr);
    }
    // The command line takes the place of what a zip or a draw says, too, and a value twice is one point.
    space.write("p.toml", text + sweep);
    let args = ["sweep", "p.toml", "--dry-run", "--set", "vars.name=one", "--set", "vars.drawn=5"];
    let plan =
        space.succeed(&[&args[..], &["--set", r#"stages.d.text="a\"b","c","c""#, "--set", "vars.rate=1"]].concat());
    assert!(plan.stdout.contains("run     c  new") || plan.stdout.contains("after   c "), "{}", plan.stdout);
    assert!(plan.stdout.contains("d@text=a-b") && plan.stdout.contains("0 of 5 cached"), "{}", plan.stdout);
    space.write("p.toml", DIAMOND);
    assert!(space.run(&["sweep", "p.toml"]).stderr.contains("there is nothing to sweep over"));
    for (set, message, help) in [
        ("stages.dd.text=1", "there is no stage `dd`", "known: a, b, c, d"),
        ("vars.x=1", "there is no variable `x`", ""),
        ("stages.d.files=1,2", "these are several values", "`imp-flow sweep` tries several"),
        ("stages.d.files=-1", "a whole number that is not negative, found the integer -1", ""),
    ] {
        let output = space.run(&["run", "p.toml", "--set", set]);
        assert_eq!(output.code, Some(2), "{set}");
        assert!(output.stderr.contains(message) && output.stderr.contains(help), "{set}: {}", output.stderr);
    }
}

#[test]
fn a_past_run_is_done_again_from_its_record() {
    let space = diamond();
    space.write("mine/data.txt", "x");
    space.succeed(&["run", "p.toml", "--set", "stages.b.text=other", "--name", "paper"]);
    let first = space.digests("diamond");
    space.write("p.toml", DIAMOND.replace("text = \"a\"", "text = \"changed\""));
    space.succeed(&["run", "p.toml"]);
    assert_ne!(space.digests("diamond"), first);
    let runs = space.succeed(&["runs"]).stdout;
    assert_eq!(runs.lines().count(), 3, "{runs}");
    let rows: Vec<&str> = runs.lines().collect();
    assert!(rows[2].contains("  paper  diamond") && rows[2].ends_with("done   4 of 4 ran"), "{runs}");
    let again = space.succeed(&["run", "--from-run", "paper"]).stdout;
    assert!(again.contains("diamond is up to date: 4 of 4 cached"), "{again}");
    // A record that says otherwise: what comes out now is not what came out then.
    let id = rows[2].split(' ').next().unwrap();
    let path = format!("cache/runs/{id}.json");
    let mut record: serde_json::Value = serde_json::from_str(&space.read(&path)).unwrap();
    record["points"][0]["stages"][0]["output"]["digest"] = "0".repeat(64).into();
    space.write(&path, record.to_string());
    let differs = space.succeed(&["run", "--from-run", "paper"]).stderr;
    assert_eq!(differs, format!("warning: other bytes than in run {id}: a\n"));
    let compare = space.succeed(&["compare", "paper", rows[1].split(' ').next().unwrap()]).stdout;
    assert!(compare.lines().next().unwrap().starts_with("point ") && compare.contains("a.text"), "{compare}");
    assert!(
        compare.contains("stages.b.text") && compare.contains("  other  ") && compare.contains("changed "),
        "{compare}"
    );
    let unknown = space.run(&["run", "--from-run", "papre"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("there is no run `papre`\n  help: did you mean `paper`?"), "{}", unknown.stderr);
}

#[test]
fn why_follows_a_change_to_where_it_came_from() {
    let space = diamond();
    for args in
        [&["why", "d"][..], &["status"], &["runs"], &["compare"], &["cache", "stats"], &["run", "--from-run", "x"]]
    {
        let output = space.run(args);
        assert_eq!(output.code, Some(2), "{args:?}");
        assert!(output.stderr.contains("nothing has run yet with the cache cache\n  help: run a pipeline"), "{args:?}");
        assert!(!space.path("cache").exists(), "{args:?} only looks");
    }
    space.succeed(&["run", "p.toml"]);
    let why = space.succeed(&["why", "d"]).stdout;
    assert!(why.starts_with("d is cached\n  it ran last ") && why.trim_end().ends_with("because: new"), "{why}");

    space.write("p.toml", DIAMOND.replace("text = \"a\"", "text = \"A\""));
    let why = space.succeed(&["why", "d"]).stdout;
    let heads: Vec<&str> = why.lines().filter(|line| !line.contains("it ran last")).collect();
    assert_eq!(
        heads,
        [
            "d waits for b, c",
            "  b waits for a",
            "    a would run: config: text \"a\" -> \"A\"",
            "  c waits for a",
            "    a would run: config: text \"a\" -> \"A\"",
        ]
    );
    space.succeed(&["run", "p.toml", "--only", "a"]);
    space.succeed(&["run", "p.toml", "--only", "b"]);
    space.succeed(&["run", "p.toml", "--only", "c"]);
    let why = space.succeed(&["why", "d"]).stdout;
    let both = "input after[0] (b): content changed; input after[1] (c): content changed";
    assert!(why.starts_with(&format!("d would run: {both}\n")), "{why}");
    let change = "  b gives another content: input after (a): content changed\n";
    assert!(why.contains(change), "{why}");
    assert!(why.contains("    a gives another content: config: text \"a\" -> \"A\"\n"), "{why}");
    assert!(why.contains("    a gives another content: as above\n"), "{why}");
    // The same afterwards, of why it ran.
    space.succeed(&["run", "p.toml"]);
    let why = space.succeed(&["why", "d"]).stdout;
    assert!(why.starts_with("d is cached\n") && why.contains(change) && why.contains("text \"a\" -> \"A\"\n"), "{why}");
}

#[test]
fn a_stage_can_be_looked_at() {
    let space = diamond();
    space.write("p.toml", DIAMOND.replace("text = \"d\"", "text = \"d\"\nfiles = 30"));
    let before = space.succeed(&["status", "p.toml"]).stdout;
    assert!(before.starts_with("to run    a  new\nwaiting   b  for a\n"), "{before}");
    let missing = space.run(&["show", "d", "--pipeline", "p.toml"]);
    assert!(missing.stderr.contains("stage `d` has not run yet"), "{}", missing.stderr);
    space.succeed(&["run", "p.toml"]);
    let status = space.succeed(&["status"]).stdout;
    assert!(status.ends_with("diamond: 4 of 4 cached, 0 running\n"), "{status}");
    let show = space.succeed(&["show", "d"]).stdout;
    for words in
        ["because   new", "text = \"d\"", "inputs    after[0] = b", "results   score 3.5", "in 31 files", "and 11 more"]
    {
        assert!(show.contains(words), "{words}: {show}");
    }
    let json: serde_json::Value = serde_json::from_str(&space.succeed(&["show", "d", "--json"]).stdout).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), 31);
    let log = space.succeed(&["log", "d", "-f"]).stdout;
    assert!(log.contains("started a stage of the kind synthetic") && log.trim_end().ends_with("done"), "{log}");
    let unknown = space.run(&["log", "dd"]);
    assert!(unknown.stderr.contains("there is no stage `dd`"), "{}", unknown.stderr);
}

#[test]
fn the_graph_is_drawn_in_four_ways() {
    let space = diamond();
    space.succeed(&["run", "p.toml", "--until", "b"]);
    let graph = |format: &str| space.succeed(&["graph", "p.toml", "--format", format]).stdout;
    assert_eq!(
        graph("text"),
        "cached  a  synthetic\ncached  b  synthetic  <- a\nrun     c  synthetic  <- a\nafter   d  synthetic  <- b, c\n"
    );
    let dot = graph("dot");
    assert!(dot.starts_with("digraph \"diamond\" {") && dot.contains("  s0 -> s1;\n") && dot.ends_with("}\n"), "{dot}");
    let mermaid = graph("mermaid");
    assert!(mermaid.contains("  s1 --> s3\n") && mermaid.contains("  classDef run "), "{mermaid}");
    let svg = graph("svg");
    assert_eq!((svg.matches("<rect ").count(), svg.matches("<path ").count()), (4, 4), "{svg}");
    assert!(svg.contains("<title>d: synthetic, after</title>") && svg.ends_with("</svg>\n"), "{svg}");
    // An edge that passes a column has a lane there, between the boxes.
    space.write(
        "p.toml",
        DIAMOND.replace("[\"b\", \"c\"]", "[\"a\", \"b\"]").replace("after = \"a\"\ntext = \"c\"", ""),
    );
    let svg = graph("svg");
    let edge = svg.lines().find(|line| line.starts_with("<path ") && line.contains(" H")).unwrap();
    let lane: f64 = edge.split(" H").next().unwrap().rsplit(',').next().unwrap().parse().unwrap();
    let boxes =
        svg.lines().filter_map(|line| line.split_once("<rect x=\"246\" y=\"")?.1.split('"').next()?.parse().ok());
    assert!(boxes.clone().count() == 1 && boxes.clone().all(|top: f64| lane < top || lane > top + 40.0), "{svg}");
}

/// Waits until `args` say `words`; fails the test after some time.
fn wait_until(space: &Space, args: &[&str], words: &str) -> String {
    for _ in 0..200 {
        let output = space.run(args);
        if output.stdout.contains(words) {
            return output.stdout;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{args:?} never said {words:?}: {:?}", space.run(args).stdout);
}

#[test]
fn a_run_that_goes_on_or_was_killed_can_be_asked() {
    let space = Space::new();
    let slow = "[stages.slow]\nkind = \"synthetic\"\nafter = \"a\"\nsteps = 1000\nstep_ms = 20\n";
    let last = "[stages.last]\nkind = \"synthetic\"\nafter = \"slow\"\n";
    let text = format!("name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nscore = 1.5\n{slow}{last}");
    space.write("p.toml", &text);
    let mut runner = space.start(&["run", "p.toml"]);
    let status = wait_until(&space, &["status"], "/1000 steps");
    assert!(status.contains("running   slow  ") && status.contains("waiting   last  for slow"), "{status}");
    // An edit while it runs, even half of one, changes nothing of what runs.
    space.write("p.toml", "name = [");
    assert!(space.succeed(&["status"]).stdout.contains("running   slow"));
    assert!(space.succeed(&["why", "slow"]).stdout.contains("it is running now"));
    assert!(space.succeed(&["log", "slow"]).stdout.contains("started a stage of the kind synthetic"));
    assert!(space.succeed(&["runs"]).stdout.contains("running  "));
    assert!(space.succeed(&["cache", "gc", "--keep", "0"]).stdout.contains("of 0 stages and 0 runs"));
    wait_until(&space, &["compare"], "a.score");

    runner.kill().unwrap();
    runner.wait().unwrap();
    assert!(space.succeed(&["runs"]).stdout.contains("killed  "));
    let compare = space.succeed(&["compare"]);
    assert!(compare.stdout.contains("a.score") && compare.stderr.contains("is killed: 2 stages"), "{}", compare.stderr);
    let asked = space.succeed(&["status"]);
    assert!(asked.stderr.contains("p.toml can't be read as it is now"), "{}", asked.stderr);

    space.write("p.toml", text.replace("steps = 1000", "fail = \"no luck\""));
    assert_eq!(space.run(&["run", "p.toml"]).code, Some(1));
    assert!(space.succeed(&["status"]).stdout.contains("failed    slow  no luck\n"));
    assert!(space.succeed(&["why", "slow"]).stdout.contains("its last try failed: no luck"));
}

#[test]
fn stages_that_would_make_the_same_have_one_fate() {
    let space = Space::new();
    let twin = |name: &str, rest: &str| format!("[stages.{name}]\nkind = \"synthetic\"\ntext = \"same\"\n{rest}\n");
    let last = "[stages.last]\nkind = \"synthetic\"\nafter = \"b\"\n";
    space.write("p.toml", format!("name = \"p\"\n{}{}{last}", twin("a", ""), twin("b", "")));
    assert_eq!(ran(&space, &["run", "p.toml"]), ["a", "last"]);
    let again = space.succeed(&["run", "p.toml", "--force", "a,b"]);
    assert!(again.stdout.contains("p is done: 1 ran, 2 cached"), "{}", again.stdout);
    let broken = "fail = \"no luck\"";
    space.write("p.toml", format!("name = \"p\"\n{}{}{last}", twin("a", broken), twin("b", broken)));
    assert_eq!(space.run(&["run", "p.toml", "--keep-going"]).code, Some(1));
    assert_eq!(space.stages_in("p", "skipped"), ["b", "last"]);
}

#[test]
fn why_is_short_where_paths_are_many() {
    let space = Space::new();
    let mut text = String::from("name = \"p\"\n[stages.s0]\nkind = \"synthetic\"\n");
    for number in 1..40 {
        let before = number - 1;
        let side = |name: &str| {
            format!("[stages.{name}{number}]\nkind = \"synthetic\"\nafter = \"s{before}\"\ntext = \"{name}\"\n")
        };
        let join = format!("[stages.s{number}]\nkind = \"synthetic\"\nafter = [\"l{number}\", \"r{number}\"]\n");
        text += &[side("l"), side("r"), join].concat();
    }
    space.write("p.toml", text);
    let why = space.succeed(&["why", "s39", "--pipeline", "p.toml"]).stdout;
    assert!(why.lines().count() < 200 && why.contains("s0 would run: new"), "{} lines", why.lines().count());
    assert!(why.contains("s37 waits, as above\n"), "{why}");
}

#[test]
fn what_is_cached_needs_no_machine_that_could_make_it() {
    let space = diamond();
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b\"\nruntime = { memory = \"3GB\" }"));
    space.write("imp-flow.toml", "memory = \"4GB\"\n");
    space.succeed(&["run", "p.toml"]);
    space.write("imp-flow.toml", "memory = \"2GB\"\n");
    space.succeed(&["status"]);
    assert_eq!(ran(&space, &["run", "p.toml", "--set", "stages.d.text=other"]), ["d"]);
    let refused = space.run(&["run", "p.toml", "--force", "b"]);
    assert!(
        refused.stderr.contains("stage `b` wants 3.0 GB of memory and this machine has 2.0 GB"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_point_may_be_called_as_a_stage_is() {
    let space = diamond();
    space.write(
        "p.toml",
        format!("{DIAMOND}[[sweep.zip]]\nlabel = [\"a\", \"x\"]\n\"stages.d.text\" = [\"1\", \"2\"]\n"),
    );
    space.succeed(&["run", "p.toml"]);
    space.succeed(&["sweep", "p.toml"]);
    let inside: Vec<_> = std::fs::read_dir(space.path("artifacts/diamond/a")).unwrap().collect();
    assert_eq!(inside.len(), 1, "no link lies in the artifact itself: {inside:?}");
    assert!(space.path("artifacts/diamond/a-2/d/value.txt").is_file());
    assert!(space.path("artifacts/diamond/x/d/value.txt").is_file());
}
