//! The cache: damage is found and repaired, unneeded results are deleted, and results in use stay.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use crate::support::{Space, files};

/// The pipeline `a -> b -> c`, whose stages write a few files.
fn chain(name: &str, first: &str) -> String {
    let stage = |name: &str, rest: &str| format!("[stages.{name}]\nkind = \"synthetic\"\nfiles = 5\n{rest}\n");
    let (a, b) = (stage("a", &format!("text = \"{first}\"")), stage("b", "after = \"a\"\ntext = \"b\""));
    format!("name = \"{name}\"\n{a}{b}{}", stage("c", "after = \"b\"\ntext = \"c\""))
}

/// The links below a folder.
fn walk_links(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_symlink() {
            true => vec![path],
            false if path.is_dir() => walk_links(&path),
            false => Vec::new(),
        })
        .collect()
}

/// Changes a read-only file in place, as a failing disk does: all links to it see the change.
fn damage(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn verify_names_every_damaged_file_and_the_next_run_repairs_it() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    let expected = space.digests("p");
    let verify = space.succeed(&["cache", "verify"]).stdout;
    assert!(verify.contains("no damage found"), "{verify}");

    let objects = files(&space.path("cache/objects"));
    let receipts = files(&space.path("cache/receipts"));
    let changes: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[0] ^= 1, |bytes| bytes.truncate(bytes.len() / 2), |bytes| bytes.push(b'\n')];
    for (number, path) in objects.iter().chain(&receipts).enumerate() {
        let relative = path.strip_prefix(space.path("cache")).unwrap().display().to_string();
        if !path.exists() {
            // The log of an earlier round, whose stage has since run again.
            continue;
        }
        damage(path, changes[number % changes.len()]);
        let found = space.run(&["cache", "verify"]);
        if relative.starts_with("receipts") && number % changes.len() == 2 {
            assert_eq!(found.code, Some(0), "white space at the end of a receipt is not damage");
            continue;
        }
        assert_eq!(found.code, Some(1), "{relative}");
        assert!(found.stdout.contains(&format!("damaged  {relative}\n")), "{relative}: {}", found.stdout);
        space.succeed(&["run", "p.toml"]);
        assert_eq!(space.digests("p"), expected, "{relative}");
        let verify = space.succeed(&["cache", "verify"]).stdout;
        assert!(verify.contains("no damage found"), "{relative}: {verify}");
    }
}

#[test]
fn missing_files_are_restored_or_made_again() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    let expected = space.digests("p");
    // An object that is still in a tree.
    let tree = files(&space.path("cache/trees")).into_iter().find(|path| path.ends_with("value.txt")).unwrap();
    let value = fs::read(&tree).unwrap();
    let object = files(&space.path("cache/objects")).into_iter().find(|path| fs::read(path).unwrap() == value).unwrap();
    fs::remove_file(&object).unwrap();
    let found = space.run(&["cache", "verify"]);
    assert!(found.stdout.contains("1 restored"), "{}", found.stdout);
    assert!(object.is_file());
    // A tree that was changed; its objects are intact.
    fs::remove_file(&tree).unwrap();
    assert_eq!(space.run(&["cache", "verify"]).code, Some(1));
    space.succeed(&["run", "p.toml"]);
    assert_eq!(fs::read(&tree).unwrap(), value);
    // Everything derived.
    for folder in ["cache/index.sled", "cache/trees", "cache/locks", "cache/live", "cache/tmp", "artifacts"] {
        let _ = fs::remove_dir_all(space.path(folder));
    }
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date: 3 of 3 cached"));
    fs::write(space.path("cache/index.sled/db"), "this is not a database".repeat(1000)).unwrap();
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date: 3 of 3 cached"));
    assert_eq!(space.digests("p"), expected);
    assert_eq!(space.succeed(&["cache", "rebuild"]).stdout, "Index rebuilt: 3 stages\n");
    assert!(
        space.succeed(&["plan", "p.toml", "--set", "stages.b.text=x"]).stdout.contains("config: text \"b\" -> \"x\"")
    );
}

#[test]
fn gc_keeps_what_recent_and_named_runs_use() {
    let space = Space::new();
    for (first, name) in [("one", Some("paper")), ("two", None), ("three", None)] {
        space.write("p.toml", chain("p", first));
        let args = ["run", "p.toml"].into_iter().chain(name.into_iter().flat_map(|name| ["--name", name]));
        space.succeed(&args.collect::<Vec<_>>());
        // Start times have a resolution of one second.
        sleep(Duration::from_millis(1100));
    }
    space.write("q.toml", chain("q", "other"));
    space.succeed(&["run", "q.toml"]);
    let stats = space.succeed(&["cache", "stats"]).stdout;
    assert!(stats.contains("results of 12 stages, used by 4 runs. Unfinished stages: none."), "{stats}");

    let before = files(&space.path("cache/objects"));
    let dry = space.succeed(&["cache", "gc", "--keep", "1", "--dry-run"]).stdout;
    assert!(dry.contains("Would free") && dry.contains("3 stages, 1 run)"), "{dry}");
    assert_eq!(files(&space.path("cache/objects")), before);
    space.succeed(&["cache", "gc", "--keep", "1"]);
    assert!(files(&space.path("cache/objects")).len() < before.len());
    assert!(space.succeed(&["cache", "verify"]).stdout.contains("no damage found"));
    for (first, cached) in [("one", 3), ("two", 0), ("three", 3)] {
        space.write("p.toml", chain("p", first));
        let plan = space.succeed(&["plan", "p.toml"]).stdout;
        assert!(plan.contains(&format!("{cached} of 3 cached")) || plan.contains("up to date"), "{first}: {plan}");
    }
}

/// A run that only finds what its last record says leaves no record: sweeps between must not push that one out.
#[test]
fn gc_keeps_the_last_run_however_many_sweeps_came_after_it() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    sleep(Duration::from_millis(1100));
    for number in 0..3 {
        let points = format!("stages.a.text=x{number},y{number}");
        space.succeed(&["sweep", "p.toml", "--set", &points]);
    }
    space.succeed(&["run", "p.toml"]);
    space.succeed(&["cache", "gc", "--keep", "1"]);
    let status = space.succeed(&["status", "p.toml"]).stdout;
    assert!(status.contains("3 of 3 cached"), "{status}");
}

#[test]
fn gc_keeps_what_a_current_run_uses() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    // Without a record, only the current run protects the stages.
    fs::remove_dir_all(space.path("cache/runs")).unwrap();
    let slow = "[stages.slow]\nkind = \"synthetic\"\nafter = \"c\"\nsteps = 100\nstep_ms = 20\n";
    space.write("slow.toml", chain("p", "a") + slow);
    let mut runner = space.start(&["run", "slow.toml"]);
    while files(&space.path("cache/work")).is_empty() {
        sleep(Duration::from_millis(10));
    }
    let _ = fs::remove_dir_all(space.path("cache/runs"));
    let gc = space.succeed(&["cache", "gc", "--keep", "0", "--json"]).stdout;
    assert!(gc.contains("\"stages\":0,"), "{gc}");
    assert_eq!(runner.wait().unwrap().code(), Some(0));
    let gc = space.succeed(&["cache", "gc", "--keep", "0"]).stdout;
    assert!(gc.contains("4 stages"), "no run uses them now: {gc}");
    let links: Vec<_> = walk_links(&space.path("artifacts"));
    assert!(links.is_empty(), "links to deleted results: {links:?}");
    assert!(files(&space.path("cache/objects")).is_empty());
}

#[test]
fn the_fast_path_detects_every_change() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    let noted = || {
        // A note is only written for folders that have not changed for two seconds.
        sleep(Duration::from_millis(2100));
        space.succeed(&["run", "p.toml"]);
        assert_eq!(files(&space.path("cache/notes")).len(), 1);
    };
    let up_to_date = |what: &str| {
        let run = space.succeed(&["run", "p.toml"]).stdout;
        assert!(run.contains("p is up to date: 3 of 3 cached"), "{what}: {run}");
        assert!(run.contains("c      cached") && run.contains("\nartifacts: artifacts/p\n"), "{what}: {run}");
    };
    noted();
    up_to_date("nothing has changed");
    fs::remove_file(space.path("artifacts/p/c")).unwrap();
    up_to_date("a link was removed");
    assert!(space.path("artifacts/p/c/value.txt").is_file());
    noted();
    fs::remove_dir_all(space.path("artifacts")).unwrap();
    up_to_date("all links were removed");
    assert!(space.path("artifacts/p/c/value.txt").is_file());
    noted();
    fs::remove_file(&files(&space.path("cache/receipts"))[0]).unwrap();
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is done: 1 ran, 2 cached"));
    noted();
    space.write("p.toml", chain("p", "b"));
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is done: 3 ran, 0 cached"));
    space.write("p.toml", chain("p", "a"));
    up_to_date("as it was before");
    assert!(space.succeed(&["run", "p.toml", "--force", "a"]).stdout.contains("p is done: 1 ran, 2 cached"));
}

#[test]
fn new_results_never_use_a_damaged_object() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    let value = fs::read(space.path("artifacts/p/b/value.txt")).unwrap();
    let object = files(&space.path("cache/objects")).into_iter().find(|path| fs::read(path).unwrap() == value).unwrap();
    damage(&object, |bytes| bytes.truncate(3));
    fs::remove_dir_all(space.path("cache/trees")).unwrap();
    space.succeed(&["run", "p.toml"]);
    assert_eq!(fs::read(space.path("artifacts/p/b/value.txt")).unwrap(), value);
    assert!(space.succeed(&["cache", "verify"]).stdout.contains("no damage found"));
}

#[test]
fn a_lost_result_is_reported_once() {
    let space = Space::new();
    space.write("p.toml", chain("p", "a"));
    space.succeed(&["run", "p.toml"]);
    let value = fs::read(space.path("artifacts/p/b/value.txt")).unwrap();
    // The settings change, so that no run makes the damaged result again.
    space.succeed(&["run", "p.toml", "--set", "stages.a.text=x"]);
    let object = files(&space.path("cache/objects")).into_iter().find(|path| fs::read(path).unwrap() == value).unwrap();
    damage(&object, |bytes| bytes.push(b'x'));
    let found = space.run(&["cache", "verify"]);
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains("lost     p/b"), "{}", found.stdout);
    let found = space.succeed(&["cache", "verify"]).stdout;
    assert!(found.contains("no damage found") && !found.contains("lost"), "{found}");
    space.succeed(&["run", "p.toml"]);
    assert_eq!(fs::read(space.path("artifacts/p/b/value.txt")).unwrap(), value);
}
