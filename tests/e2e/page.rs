//! The report page: what `run` and `report` write, and what is in it. `.ci/page` looks at it in a browser.

use std::{fs, os::unix::fs::MetadataExt};

use serde_json::Value;

use crate::support::{DIAMOND, SMALL, Space};

/// The data of a page.
fn data(html: &str) -> Value {
    let (_, rest) = html.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

#[test]
fn a_run_writes_a_page_with_its_stages_curves_scores_and_answers() {
    let space = Space::new();
    space.write("p.toml", SMALL);
    let output = space.succeed(&["run", "p.toml"]);
    assert!(output.stdout.ends_with("\nreport: artifacts/small/report.html\n"), "{}", output.stdout);
    let html = space.read("artifacts/small/report.html");
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    let page = data(&html);
    assert_eq!((&page["format"], &page["version"]), (&"imp-flow report".into(), &1.into()));
    let run = &page["runs"][0];
    assert_eq!((&run["state"], run["stages"].as_array().unwrap().len()), (&"done".into(), 12));
    assert_eq!(run["drawing"]["corners"].as_array().unwrap().len(), 12);

    let stage = named(&run["stages"], "finetune");
    assert_eq!((&stage["state"], &stage["config"]["mode"]), (&"ran".into(), &"\"full\"".into()));
    assert!(stage["config"].get("adam_beta1").is_none(), "defaults stand with the kind");
    assert_eq!(page["kinds"]["finetune"]["keys"]["adam_beta1"]["default"], "0.9");
    assert_eq!(stage["runtime"]["checkpoint_steps"], "2");
    let model = stage["inputs"]["model"].as_u64().unwrap() as usize;
    assert_eq!(run["stages"][model]["name"], "pretrain");
    let time = |stage: &Value, name: &str| stage[name].as_f64().unwrap();
    assert!(
        time(stage, "began") >= time(&run["stages"][model], "ended") && time(stage, "ended") > time(stage, "began")
    );
    let loss = named(&stage["curves"], "loss");
    assert_eq!((&loss["points"], loss["steps"].as_array().unwrap().len()), (&16.into(), 16));
    assert_eq!(loss["values"].as_array().unwrap().len(), 16);
    let result = &stage["result"];
    assert_eq!(
        (&result["reason"], &result["output"]["largest"][0][0]),
        (&"new".into(), &"vision/model.safetensors".into())
    );
    assert!(named(&result["figures"], "loss")["headline"].as_bool().unwrap());
    assert!(stage["log"]["tail"].as_str().unwrap().contains("finetune"));

    let rows = page["tables"][0]["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["published"] == false && row["figures"]["pope"].is_number()), "{rows:?}");
    let answers = &page["answers"][0];
    assert_eq!(
        (&run["stages"][answers["stage"].as_u64().unwrap() as usize]["name"], &answers["total"]),
        (&"pope".into(), &36.into())
    );
    let accuracy = named(&named(&run["stages"], "pope")["result"]["figures"], "accuracy")["value"].as_f64().unwrap();
    assert!((100.0 * answers["mean"].as_f64().unwrap() - accuracy).abs() < 0.006);
    let row = &answers["rows"][0];
    assert!(row["truth"][0].is_string() && row["score"].is_number() && row["category"] == "adversarial", "{row}");
    let image = page["images"][row["image"].as_u64().unwrap() as usize].as_str().unwrap();
    assert!(image.starts_with("data:image/jpeg;base64,"));

    // The same data again, and the terminal's view of the answers.
    space.succeed(&["report", "-o", "again.html"]);
    assert_eq!(space.read("again.html"), html);
    let json: Value = serde_json::from_str(&space.succeed(&["report", "--json"]).stdout).unwrap();
    assert_eq!(json["runs"][0]["stages"], run["stages"]);
    let shown = space.succeed(&["show", "pope", "--answers", "--wrong", "--category", "random"]).stdout;
    let counted = shown.lines().last().unwrap();
    assert!(counted.starts_with("36 answers: ") && counted.ends_with(" shown"), "{counted}");
    assert!(shown.contains("\n  truth    ") && !shown.contains("right  "), "{shown}");
    let lines = space.succeed(&["show", "pope", "--answers", "--json"]).stdout;
    assert_eq!(lines.lines().count(), 36);
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert!(space.path(line["image"].as_str().unwrap()).is_file(), "{line}");
    let refused = space.run(&["show", "pope", "--answers", "--category", "randm"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("did you mean `random`?"), "{}", refused.stderr);
    let refused = space.run(&["show", "merge", "--answers"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("stage `merge` has no answers"), "{}", refused.stderr);
}

#[test]
fn only_a_run_with_news_writes_a_page() {
    let space = Space::new();
    space.write("p.toml", DIAMOND);
    let page = "artifacts/diamond/report.html";
    space.succeed(&["run", "p.toml"]);
    let inode = || fs::metadata(space.path(page)).unwrap().ino();
    let first = inode();
    let again = space.succeed(&["run", "p.toml"]);
    assert!(!again.stdout.contains("report") && inode() == first, "{}", again.stdout);

    space.succeed(&["run", "p.toml", "--set", "stages.b.text=\"other\"", "--name", "second"]);
    assert_ne!(inode(), first);
    let changes = &data(&space.read(page))["runs"][0]["changes"];
    assert_eq!(changes["parameters"][0]["key"], "stages.b.text");
    assert_eq!((&changes["contents"][0], &changes["contents"][1]), (&"b".into(), &"d".into()));

    // Past runs by name, by id and by their pipeline; several in one page; anywhere.
    let runs = space.succeed(&["runs", "--json"]).stdout;
    let ids: Vec<String> = runs
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_string())
        .collect();
    let id = ids.last().unwrap();
    let written = |args: &[&str]| space.succeed(&[&["report"], args].concat()).stdout;
    assert_eq!(written(&["p.toml"]), format!("report: {page}\n"));
    assert_eq!(written(&[id]), format!("report: artifacts/diamond/report-{id}.html\n"));
    assert_eq!(written(&[id, "second", "--html", "out/two.html"]), "report: out/two.html\n");
    assert_eq!(data(&space.read("out/two.html"))["runs"].as_array().unwrap().len(), 2);
    assert!(written(&["diamond", "-o", "-"]).starts_with("<!doctype html>"));
    let refused = space.run(&["report", "third"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("there is no run `third`"), "{}", refused.stderr);
}

#[test]
fn a_failed_run_has_a_page_and_a_page_that_fails_fails_no_run() {
    let space = Space::new();
    let secret = DIAMOND.replace("text = \"a\"", "text = \"https://user:hunter2@host/?token=hunter3 </script>\"");
    space.write("p.toml", secret.replace("text = \"c\"", "text = \"c\"\nfail = \"</script><!-- no luck\""));
    assert_eq!(space.run(&["run", "p.toml", "--keep-going"]).code, Some(1));
    let html = space.read("artifacts/diamond/report.html");
    assert!(!html.contains("hunter"), "secrets are hidden");
    assert_eq!(html.matches("</script").count(), 2);
    let page = data(&html);
    let stages = &page["runs"][0]["stages"];
    assert_eq!(page["runs"][0]["state"], "failed");
    let failed = named(stages, "c");
    assert_eq!((&failed["state"], &failed["failure"]), (&"failed".into(), &"</script><!-- no luck".into()));
    assert!(failed["log"]["tail"].as_str().unwrap().contains("about to fail"), "{}", failed["log"]);
    assert_eq!((&named(stages, "d")["state"], &named(stages, "d")["result"]), (&"skipped".into(), &Value::Null));

    // Something is in the way of the page.
    let path = space.path("artifacts/diamond/report.html");
    fs::remove_file(&path).unwrap();
    fs::create_dir_all(path.join("full")).unwrap();
    space.write("p.toml", DIAMOND);
    let output = space.succeed(&["run", "p.toml"]);
    assert!(
        output.stderr.contains("no report of this run: can't write artifacts/diamond/report.html"),
        "{}",
        output.stderr
    );
    assert!(output.stdout.contains("diamond is done") && !output.stdout.contains("report:"), "{}", output.stdout);
}

#[test]
fn a_sweep_has_one_page_for_all_points() {
    let space = Space::new();
    space.write("p.toml", DIAMOND);
    space.succeed(&["sweep", "p.toml", "--set", "stages.d.score=1.0,2.0,3.0"]);
    let page = data(&space.read("artifacts/diamond/report.html"));
    let run = &page["runs"][0];
    let labels: Vec<&str> =
        run["points"].as_array().unwrap().iter().map(|point| point["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["score=1.0", "score=2.0", "score=3.0"]);
    assert_eq!(named(&run["stages"], "a")["points"].as_array().unwrap().len(), 3, "shared");
    let scores: Vec<f64> = run["stages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|stage| stage["points"][0][1] == "d")
        .map(|stage| stage["result"]["figures"][0]["value"].as_f64().unwrap())
        .collect();
    assert_eq!(scores, [1.0, 2.0, 3.0]);
}
