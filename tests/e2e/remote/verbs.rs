//! The verbs on a remote cache.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{ALL, Lab, events, warnings};
use crate::support::files;

#[test]
fn one_result_is_pulled_without_what_it_was_made_from() {
    let lab = Lab::new();
    lab.ran("one");
    let output = lab.succeed("two", &["pull", "d", "-p", "p.toml"]);
    assert!(
        output.stdout.starts_with("d: pulled ") && output.stdout.contains("artifacts/diamond/d"),
        "{}",
        output.stdout
    );
    assert_eq!(
        lab.space.read("two/artifacts/diamond/d/value.txt"),
        lab.space.read("one/artifacts/diamond/d/value.txt")
    );
    assert_eq!(files(&lab.space.path("two/cache/receipts")).len(), 1);
    assert!(!lab.space.path("two/artifacts/diamond/a").exists());
    let again = lab.succeed("two", &["pull", "d", "-p", "p.toml"]).stdout;
    assert!(again.contains("was here already"), "{again}");
    let other = lab.run("two", &["pull", "d", "-p", "p.toml", "--set", "stages.d.text=x"]);
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(other.stderr.contains("does not have the result of `d`"), "{}", other.stderr);
    let other = lab.run("two", &["pull", "d", "-p", "p.toml", "--set", "stages.a.text=x"]);
    assert!(other.stderr.contains("neither cache has what `d` is made from"), "{}", other.stderr);
    lab.settings("two", "");
    let none = lab.run("two", &["pull", "d", "-p", "p.toml"]);
    assert_eq!(none.code, Some(2));
    assert!(
        none.stderr.contains("there is no remote cache") && none.stderr.contains("help: name one"),
        "{}",
        none.stderr
    );
}

#[test]
fn all_results_are_pushed_and_pulled() {
    let lab = Lab::new();
    let shared = lab.space.path("shared").display().to_string();
    lab.settings("one", "");
    lab.succeed("one", &["run", "p.toml"]);
    assert!(lab.shared("receipts").is_empty());
    let remote = format!("remote = \"file://{shared}\"\n");
    lab.settings("one", &(remote.clone() + "remote_access = \"read\"\n"));
    let refused = lab.run("one", &["cache", "push"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("is only read"), "{}", refused.stderr);
    lab.settings("one", &remote);
    let nothing = lab.run("one", &["cache", "push", "--of", "other"]);
    assert!(
        nothing.code == Some(2) && nothing.stderr.contains("no results of a pipeline `other`"),
        "{}",
        nothing.stderr
    );
    let pushed = lab.succeed("one", &["cache", "push"]).stdout;
    assert!(pushed.starts_with("Pushed 4 results (") && pushed.contains("; 0 were there."), "{pushed}");
    let pushed = lab.succeed("one", &["cache", "push"]).stdout;
    assert!(pushed.contains("; 4 were there."), "{pushed}");
    let stats = lab.succeed("two", &["cache", "stats", "--remote"]).stdout;
    assert!(stats.contains("diamond") && stats.contains("4 results"), "{stats}");
    let pulled = lab.succeed("two", &["cache", "pull", "--of", "diamond"]).stdout;
    assert!(pulled.starts_with("Pulled 4 results (") && pulled.contains("; 0 were here."), "{pulled}");
    fs::rename(&shared, lab.space.path("away")).unwrap();
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty());
    let gone = lab.run("two", &["cache", "pull"]);
    assert_eq!(gone.code, Some(1), "{}", gone.stderr);
    assert!(gone.stderr.contains("can't be used: there is no such folder"), "{}", gone.stderr);
}

/// A file was written so many days ago.
fn age(path: &Path, days: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_hours(24 * days)).unwrap();
}

fn receipts(lab: &Lab) -> Vec<PathBuf> {
    lab.shared("receipts")
}

#[test]
fn garbage_collection_keeps_what_runs_used() {
    let lab = Lab::new();
    let mut runs: Vec<PathBuf> = Vec::new();
    for text in ["one", "two", "three"] {
        lab.succeed("one", &["run", "p.toml", "--set", &format!("stages.a.text={text}")]);
        runs.extend(lab.shared("runs").into_iter().filter(|path| !runs.contains(path)).collect::<Vec<_>>());
    }
    assert_eq!((receipts(&lab).len(), runs.len()), (12, 3));
    lab.shared("").iter().for_each(|path| age(path, 30));
    // Each run is a later one.
    runs.iter().zip([20, 19, 18]).for_each(|(path, days)| age(path, days));
    let gc =
        |more: &[&str]| lab.succeed("two", &[&["cache", "gc", "--remote", "--cache", "cache"], more].concat()).stdout;
    lab.space.write("two/cache/VERSION", "1");
    // Those of the last days stay, whoever used them.
    assert!(gc(&["--keep", "0", "--days", "100"]).contains("(0 files)"));
    assert_eq!(receipts(&lab).len(), 12);
    let planned = gc(&["--keep", "2", "--dry-run"]);
    assert!(planned.starts_with("Would free") && planned.contains("4 results"), "{planned}");
    assert_eq!(receipts(&lab).len(), 12);
    gc(&["--keep", "2"]);
    assert_eq!((receipts(&lab).len(), lab.shared("runs").len()), (8, 2));
    assert!(lab.shared("leases").iter().all(|path| !path.ends_with("gc")), "the lease is given back");
    // What is kept can be pulled, and what is gone is made.
    lab.forget("one");
    let ran = |text: &str| {
        let output = lab.succeed("one", &["--json", "run", "p.toml", "--set", &format!("stages.a.text={text}")]);
        assert_eq!(warnings(&output), [""; 0]);
        events(&output, "finished").len()
    };
    assert_eq!(ran("three"), 0);
    assert_eq!(ran("one"), 4);
}

#[test]
fn a_lease_lets_one_machine_collect_garbage() {
    let lab = Lab::new();
    lab.ran("one");
    lab.space.write("shared/leases/gc", "{\"host\": \"other\\u001b[2J\", \"id\": \"x\"}");
    let refused = lab.run("one", &["cache", "gc", "--remote"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("garbage is being collected there by other\\u{1b}[2J"), "{}", refused.stderr);
    // Meanwhile results are left for later.
    let output = lab.succeed("one", &["--json", "run", "p.toml", "--set", "stages.d.text=x"]);
    assert_eq!((events(&output, "remote")[0]["unsent"].as_u64(), warnings(&output).len()), (Some(1), 0));
    // Its owner was killed.
    let lease = lab.space.path("shared/leases/gc");
    let file = fs::File::options().write(true).open(&lease).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
    let output = lab.succeed("one", &["--json", "run", "p.toml", "--set", "stages.d.text=x"]);
    assert_eq!(events(&output, "remote")[0]["sent"], 1);
    lab.succeed("one", &["cache", "gc", "--remote"]);
    assert!(!Path::new(&lease).exists());
    assert_eq!(receipts(&lab).len(), ALL.len() + 1);
}

#[test]
fn damaged_results_are_collected() {
    let lab = Lab::new();
    lab.ran("one");
    fs::write(&receipts(&lab)[0], "x").unwrap();
    let stats = lab.succeed("one", &["cache", "stats", "--remote"]).stdout;
    assert!(stats.contains("1 result with a receipt that can't be read"), "{stats}");
    let told = lab.succeed("one", &["cache", "gc", "--remote"]).stdout;
    assert!(told.contains("1 of them damaged"), "{told}");
    assert_eq!(receipts(&lab).len(), 3);
    assert!(lab.succeed("one", &["cache", "push"]).stdout.starts_with("Pushed 1 result ("));
    // A receipt is there, and an object of it is not.
    let output = lab.space.read("one/artifacts/diamond/b/value.txt");
    let object = lab.shared("objects").into_iter().find(|path| fs::read(path).unwrap() == output.as_bytes()).unwrap();
    fs::remove_file(object).unwrap();
    assert!(lab.succeed("one", &["cache", "push"]).stdout.starts_with("Pushed 1 result ("));
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty());
}
