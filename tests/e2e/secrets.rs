//! Passwords and tokens of addresses: needed to download, stored nowhere. Figures in receipts: a changed one is not believed.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use crate::{
    hub::{Files, serve},
    support::{Space, files, ran},
};

#[test]
fn secrets_of_addresses_are_stored_nowhere() {
    let address = serve(Files::from([("/data.json".to_string(), b"[]".to_vec())]));
    let host = address.strip_prefix("http://").unwrap();
    let space = Space::new();
    let pipeline = |token: &str, path: &str| {
        let source = format!("http://me:pa55word@{host}/{path}?token={token}&file=1");
        format!("name = \"p\"\n[stages.x]\nkind = \"download\"\nsource = \"{source}\"\n")
    };
    let mut shown = String::new();
    let mut run = |args: &[&str], code: i32| {
        let output = space.run(args);
        assert_eq!(output.code, Some(code), "{args:?} {} {}", output.stdout, output.stderr);
        shown += &(output.stdout + &output.stderr);
    };
    space.write("p.toml", pipeline("t0kenA", "data.json"));
    run(&["run", "p.toml", "--name", "first"], 0);
    run(&["run", "p.toml"], 0);
    space.write("p.toml", pipeline("t0kenB", "data.json"));
    run(&["plan", "p.toml"], 0);
    run(&["why", "x"], 0);
    run(&["--json", "run", "p.toml"], 0);
    run(&["show", "x"], 0);
    let set = format!("stages.x.source=\"http://a:pa55word@{host}/data.json?token=t0kenC\"");
    run(&["run", "p.toml", "--set", &set], 0);
    run(&["run", "--from-run", "first"], 2);
    assert!(shown.contains("was stored without its password or token"), "{shown}");
    // What failed stays in its work folder, which needs the address.
    space.write("p.toml", pipeline("t0kenD", "missing"));
    let failed = space.run(&["run", "p.toml"]);
    assert_eq!(failed.code, Some(1));
    shown += &(failed.stdout + &failed.stderr);
    for work in fs::read_dir(space.path("cache/work")).unwrap() {
        let work = work.unwrap().path();
        assert_eq!(work.metadata().unwrap().permissions().mode() & 0o077, 0);
        assert!(!fs::read_to_string(work.join("log")).unwrap().contains("t0ken"));
        fs::remove_dir_all(work).unwrap();
    }
    let all: Vec<PathBuf> = ["cache", "artifacts"].iter().flat_map(|folder| files(&space.path(folder))).collect();
    assert!(all.iter().any(|path| path.extension().is_some_and(|ending| ending == "json")));
    for path in all {
        let bytes = fs::read(&path).unwrap();
        let holds = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!holds("pa55word") && !holds("t0ken"), "{}", path.display());
    }
    for secret in ["pa55word", "t0ken"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_log_is_for_its_owner_unless_the_cache_is_shared() {
    for (cache, log) in [(0o755, 0o400), (0o775, 0o440)] {
        let space = Space::new();
        space.write("p.toml", "name = \"p\"\n[stages.x]\nkind = \"synthetic\"\n");
        fs::create_dir(space.path("cache")).unwrap();
        fs::set_permissions(space.path("cache"), fs::Permissions::from_mode(cache)).unwrap();
        space.succeed(&["run", "p.toml"]);
        let mode = |name: &str| space.path(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("artifacts/p/x.log"), log);
        // The page has the end of the log. What the umask of the test leaves of the group's access is not known.
        assert_eq!(mode("artifacts/p/report.html") & !0o220 & !log, 0);
    }
}

#[test]
fn a_changed_figure_in_a_receipt_is_noticed() {
    let text = "name = \"p\"\n[stages.x]\nkind = \"synthetic\"\nscore = 0.5\n[stages.y]\nkind = \"synthetic\"\nafter = \"x\"\n";
    let change = |space: &Space| {
        let mut receipts = files(&space.path("cache/receipts")).into_iter();
        let receipt =
            receipts.find(|path| fs::read_to_string(path).unwrap().contains("\"results\": {\n    \"score\": 0.5"));
        let receipt = receipt.unwrap();
        let changed = fs::read_to_string(&receipt).unwrap().replace("\"score\": 0.5", "\"score\": 0.9");
        fs::write(receipt, changed).unwrap();
    };
    let space = Space::new();
    space.write("p.toml", text);
    space.succeed(&["run", "p.toml"]);
    change(&space);
    let run = space.succeed(&["run", "p.toml"]);
    assert!(run.stderr.contains("is damaged: its stage runs again"), "{}", run.stderr);
    assert!(run.stdout.contains("p is done: 1 ran, 1 cached") && run.stdout.contains("score 0.5"), "{}", run.stdout);
    change(&space);
    let found = space.run(&["cache", "verify"]);
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains("damaged  receipts/"), "{}", found.stdout);
    space.succeed(&["cache", "verify"]);
    assert_eq!(ran(&space, &["run", "p.toml"]), ["x"]);
}

#[test]
fn receipts_of_older_versions_are_valid() {
    let space = Space::new();
    space.write("p.toml", "name = \"p\"\n[stages.x]\nkind = \"synthetic\"\n");
    space.succeed(&["run", "p.toml"]);
    for receipt in files(&space.path("cache/receipts")) {
        let text = fs::read_to_string(&receipt).unwrap();
        let (old, _) = text.split_once(",\n  \"checksum\"").unwrap();
        fs::write(receipt, format!("{old}\n}}").replace("\n  \"sealed\": true,", "")).unwrap();
    }
    for derived in ["index.sled", "notes", "stamps"] {
        fs::remove_dir_all(space.path("cache").join(derived)).unwrap_or_default();
    }
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date: 1 of 1 cached"));
    assert!(space.succeed(&["cache", "verify"]).stdout.contains("no damage found"));
}
