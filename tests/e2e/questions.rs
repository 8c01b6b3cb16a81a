//! The verbs that explain and show results: why, status, show, log, graph, runs, compare.

use crate::support::{DIAMOND, Space, diamond};

#[test]
fn a_past_run_is_repeated_from_its_record() {
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
    assert!(rows[2].contains("  paper  diamond") && rows[2].ends_with("done   4 of 4 (4 ran)"), "{runs}");
    let again = space.succeed(&["run", "--from-run", "paper"]).stdout;
    assert!(again.contains("diamond is up to date: 4 of 4 cached"), "{again}");
    // A record with a different digest: the results differ from those of that run.
    let id = rows[2].split(' ').next().unwrap();
    let path = format!("cache/runs/{id}.json");
    let mut record: serde_json::Value = serde_json::from_str(&space.read(&path)).unwrap();
    record["points"][0]["stages"][0]["output"]["digest"] = "0".repeat(64).into();
    space.write(&path, record.to_string());
    let differs = space.succeed(&["run", "--from-run", "paper"]).stderr;
    assert_eq!(differs, format!("warning: results differ from run {id}: a\n"));
    let compare = space.succeed(&["compare", "paper", rows[1].split(' ').next().unwrap()]).stdout;
    assert!(compare.lines().next().unwrap().starts_with("point ") && compare.contains("a.text"), "{compare}");
    assert!(
        compare.contains("stages.b.text") && compare.contains("  other\n") && compare.contains("changed "),
        "{compare}"
    );
    let unknown = space.run(&["run", "--from-run", "papre"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("there is no run `papre`\n  help: did you mean `paper`?"), "{}", unknown.stderr);
}

#[test]
fn why_traces_a_change_to_its_origin() {
    let space = diamond();
    for args in
        [&["why", "d"][..], &["status"], &["runs"], &["compare"], &["cache", "stats"], &["run", "--from-run", "x"]]
    {
        let output = space.run(args);
        assert_eq!(output.code, Some(2), "{args:?}");
        assert!(
            output.stderr.contains("no runs in the cache `cache` (looked in HERE)\n  help: run a pipeline"),
            "{args:?}"
        );
        assert!(!space.path("cache").exists(), "{args:?} only reads");
    }
    space.succeed(&["run", "p.toml"]);
    let why = space.succeed(&["why", "d"]).stdout;
    assert!(why.starts_with("d is cached\n  last ran ") && why.trim_end().ends_with("): first run"), "{why}");

    space.write("p.toml", DIAMOND.replace("text = \"a\"", "text = \"A\""));
    let why = space.succeed(&["why", "d"]).stdout;
    let heads: Vec<&str> = why.lines().filter(|line| !line.contains("last ran")).collect();
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
    let change = "  b produced different content: input after (a): content changed\n";
    assert!(why.contains(change), "{why}");
    assert!(why.contains("    a produced different content: config: text \"a\" -> \"A\"\n"), "{why}");
    assert!(why.contains("    a produced different content: as above\n"), "{why}");
    // The same explanation after the run.
    space.succeed(&["run", "p.toml"]);
    let why = space.succeed(&["why", "d"]).stdout;
    assert!(why.starts_with("d is cached\n") && why.contains(change) && why.contains("text \"a\" -> \"A\"\n"), "{why}");
}

#[test]
fn a_stage_can_be_inspected() {
    let space = diamond();
    space.write("p.toml", DIAMOND.replace("text = \"d\"", "text = \"d\"\nfiles = 30"));
    let before = space.succeed(&["status", "p.toml"]).stdout;
    assert!(before.starts_with("to run    a  first run\nwaiting   b  for a\n"), "{before}");
    let missing = space.run(&["show", "d", "--pipeline", "p.toml"]);
    assert!(missing.stderr.contains("stage `d` has no result yet"), "{}", missing.stderr);
    space.succeed(&["run", "p.toml"]);
    let status = space.succeed(&["status"]).stdout;
    assert!(status.ends_with("diamond: 4 of 4 cached, 0 running\n"), "{status}");
    let show = space.succeed(&["show", "d"]).stdout;
    for words in [
        "reason      first run",
        "text = \"d\"",
        "inputs      after[0] = b",
        "results     score 3.5",
        "in 31 files",
        "and 11 more",
    ] {
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
fn the_graph_has_four_formats() {
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
    // An edge that crosses a column must not touch the boxes in it.
    space.write(
        "p.toml",
        DIAMOND.replace("[\"b\", \"c\"]", "[\"a\", \"b\"]").replace("after = \"a\"\ntext = \"c\"", ""),
    );
    let svg = graph("svg");
    let edge = svg.lines().find(|line| line.starts_with("<path ") && line.contains(" H")).unwrap();
    let lane: f64 = edge.split(" H").next().unwrap().rsplit(',').next().unwrap().parse().unwrap();
    let boxes =
        svg.lines().filter_map(|line| line.split_once("<rect x=\"232\" y=\"")?.1.split('"').next()?.parse().ok());
    assert!(boxes.clone().count() == 1 && boxes.clone().all(|top: f64| lane < top || lane > top + 40.0), "{svg}");
}

/// Waits until the output of `args` contains `words`. Fails the test after 200 attempts.
fn wait_until(space: &Space, args: &[&str], words: &str) -> String {
    for _ in 0..200 {
        let output = space.run(args);
        if output.stdout.contains(words) {
            return output.stdout;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{args:?} never printed {words:?}: {:?}", space.run(args).stdout);
}

#[test]
fn a_running_or_killed_run_can_be_inspected() {
    let space = Space::new();
    let slow = "[stages.slow]\nkind = \"synthetic\"\nafter = \"a\"\nsteps = 1000\nstep_ms = 20\n";
    let last = "[stages.last]\nkind = \"synthetic\"\nafter = \"slow\"\n";
    let text = format!("name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nscore = 1.5\n{slow}{last}");
    space.write("p.toml", &text);
    let mut runner = space.start(&["run", "p.toml"]);
    let status = wait_until(&space, &["status"], "/1000 steps");
    assert!(status.contains("running   slow  ") && status.contains("waiting   last  for slow"), "{status}");
    // Editing the file, even into something invalid, does not affect the running pipeline.
    space.write("p.toml", "name = [");
    assert!(space.succeed(&["status"]).stdout.contains("running   slow"));
    assert!(space.succeed(&["why", "slow"]).stdout.contains("slow is running: first run\n"));
    assert!(space.succeed(&["log", "slow"]).stdout.contains("started a stage of the kind synthetic"));
    assert!(space.succeed(&["runs"]).stdout.contains("running  "));
    let gc = space.succeed(&["cache", "gc", "--keep", "0", "--json"]).stdout;
    assert!(gc.contains("\"runs\":0,\"stages\":0,"), "{gc}");
    wait_until(&space, &["compare"], "a.score");

    runner.kill().unwrap();
    runner.wait().unwrap();
    assert!(space.succeed(&["runs"]).stdout.contains("killed  "));
    let compare = space.succeed(&["compare"]);
    assert!(
        compare.stdout.contains("a.score") && compare.stderr.contains("note: 2 stages of run"),
        "{}",
        compare.stderr
    );
    assert!(space.succeed(&["why", "slow"]).stdout.contains("it resumes from its checkpoint"));
    let status = space.succeed(&["status"]);
    assert!(status.stderr.contains("p.toml has a mistake now"), "{}", status.stderr);

    space.write("p.toml", text.replace("steps = 1000", "fail = \"no luck\""));
    assert_eq!(space.run(&["run", "p.toml"]).code, Some(1));
    assert!(space.succeed(&["status"]).stdout.contains("failed    slow  no luck\n"));
    assert!(space.succeed(&["why", "slow"]).stdout.contains("its last try failed: no luck"));
}

#[test]
fn why_is_short_even_with_many_paths() {
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
    assert!(why.lines().count() < 200 && why.contains("s0 would run: first run"), "{} lines", why.lines().count());
    assert!(why.contains("s37 waits, as above\n"), "{why}");
}

#[test]
fn a_past_run_finds_sources_relative_to_each_extended_file() {
    let space = Space::new();
    let stage = |name: &str| format!("[stages.{name}]\nkind = \"download\"\nsource = \"data\"\n");
    space.write("base/base.toml", stage("theirs")).write("base/data/x", "theirs").write("data/x", "mine");
    space.write("p.toml", format!("name = \"p\"\nextends = \"base/base.toml\"\n{}", stage("mine")));
    space.succeed(&["run", "p.toml", "--name", "both"]);
    assert_eq!(space.read("artifacts/p/theirs/x"), "theirs");
    let again = space.succeed(&["run", "--from-run", "both"]);
    assert!(again.stdout.contains("p is up to date: 2 of 2 cached"), "{}", again.stdout);
}
