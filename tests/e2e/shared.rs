//! Caches that several people or runs use: read-only ones, rebuilt ones, and runs with wrong clocks.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{Space, diamond};

/// Mounts a small file system at `folder`. False without the permission to.
fn mount(folder: &Path) -> bool {
    fs::create_dir_all(folder).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(folder).stderr(Stdio::null()).status();
    mount.is_ok_and(|status| status.success())
}

fn change_mount(folder: &Path, args: &[&str]) {
    assert!(Command::new(args[0]).args(&args[1..]).arg(folder).status().unwrap().success());
}

#[test]
fn a_read_only_cache_serves_hits() {
    let space = diamond();
    let disk = space.path("disk");
    if !mount(&disk) {
        // The permissions of folders don't stop root, and others can't mount.
        return;
    }
    let args = ["run", "p.toml", "--cache", "disk/cache"];
    space.succeed(&args);
    for derived in [&["index.sled", "notes", "stamps", "locks", "live"][..], &[]] {
        // As an older version left it, and with everything that this one keeps.
        for folder in derived {
            let _ = fs::remove_dir_all(disk.join("cache").join(folder));
        }
        change_mount(&disk, &["mount", "-o", "remount,ro"]);
        let outputs = [
            space.run(&args),
            space.run(&args),
            space.run(&["cache", "verify", "--cache", "disk/cache"]),
            space.run(&["plan", "p.toml", "--cache", "disk/cache"]),
            space.run(&["cache", "stats", "--cache", "disk/cache"]),
            space.run(&["run", "p.toml", "--cache", "disk/cache", "--set", "stages.d.text=x"]),
        ];
        change_mount(&disk, &["mount", "-o", "remount,rw"]);
        for (number, output) in outputs.iter().enumerate().take(5) {
            assert_eq!(output.code, Some(0), "{number}: {} {}", output.stdout, output.stderr);
            assert!(output.stderr.is_empty(), "{number}: {}", output.stderr);
        }
        assert!(outputs[0].stdout.contains("diamond is up to date: 4 of 4 cached"), "{}", outputs[0].stdout);
        let refused = &outputs[5];
        assert_eq!(refused.code, Some(1), "{} {}", refused.stdout, refused.stderr);
        assert!(refused.stderr.contains("make the cache folder writable"), "{}", refused.stderr);
        space.succeed(&args);
    }
    change_mount(&disk, &["umount", "-l"]);
}

#[test]
fn the_index_can_be_rebuilt_beside_runs() {
    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    let mut runs = Vec::new();
    for number in 0..12 {
        let text = format!("stages.a.text=\"{number}\"");
        runs.push(space.start(&["run", "p.toml", "--set", &text]));
        let rebuilt = space.succeed(&["cache", "rebuild"]);
        assert!(rebuilt.stdout.starts_with("Index rebuilt: "), "{}", rebuilt.stdout);
    }
    for mut run in runs {
        assert_eq!(run.wait().unwrap().code(), Some(0));
    }
    space.succeed(&["run", "p.toml"]);
    assert_eq!(fs::read_dir(space.path("cache/tmp")).unwrap().count(), 0, "nothing is left over");
}

#[test]
fn wrong_clocks_do_not_change_the_order_of_runs() {
    let space = diamond();
    let mut seen = Vec::new();
    // The second run happens in 2036, the third before 1970.
    for (text, started) in [("one", None), ("two", Some("2100000000.0")), ("three", Some("-5.0")), ("four", None)] {
        space.succeed(&["run", "p.toml", "--set", &format!("stages.a.text={text}")]);
        let new = fs::read_dir(space.path("cache/runs")).unwrap().map(|entry| entry.unwrap().path());
        let new = new.into_iter().find(|path| path.extension().is_some() && !seen.contains(path)).unwrap();
        if let Some(started) = started {
            let record = fs::read_to_string(&new).unwrap();
            let at = record.find("\"started\": ").unwrap() + "\"started\": ".len();
            let end = at + record[at..].find(',').unwrap();
            fs::write(&new, format!("{}{started}{}", &record[..at], &record[end..])).unwrap();
        }
        seen.push(new);
    }
    let runs = space.succeed(&["runs"]).stdout;
    assert_eq!(runs.lines().filter(|line| line.contains("diamond")).count(), 4, "{runs}");
    space.succeed(&["cache", "gc", "--keep", "2"]);
    let kept: Vec<bool> = seen.iter().map(|path| path.exists()).collect();
    assert_eq!(kept, [false, false, true, true]);
    let up_to_date = |text: &str| {
        let plan = space.succeed(&["plan", "p.toml", "--set", &format!("stages.a.text={text}")]).stdout;
        plan.contains("4 of 4 cached") || plan.contains("up to date")
    };
    assert!(up_to_date("four") && up_to_date("three"));
}

#[test]
fn faults_of_a_source_are_those_of_the_source() {
    let space = Space::new();
    space.write("src/a.txt", "x").write("p.toml", "name = \"p\"\n[stages.x]\nkind = \"download\"\nsource = \"src\"\n");
    let bad = space.path("src/bad");
    let make: [(&str, &dyn Fn()); 4] = [
        ("this link points to nothing", &|| std::os::unix::fs::symlink("/no/such/file", &bad).unwrap()),
        ("this link leads back to", &|| std::os::unix::fs::symlink(".", &bad).unwrap()),
        ("this is neither a file nor a folder", &|| {
            assert!(Command::new("mkfifo").arg(&bad).status().unwrap().success());
        }),
        ("must be UTF-8 without control characters", &|| fs::write(space.path("src/b\n"), "").unwrap()),
    ];
    for (why, make) in make {
        make();
        let output = space.run(&["run", "p.toml"]);
        assert_eq!(output.code, Some(2), "{why}: {}", output.stderr);
        assert!(output.stderr.contains("can't read a source: HERE/src"), "{}", output.stderr);
        assert!(output.stderr.contains(why) && output.stderr.contains("help: "), "{}", output.stderr);
        assert!(!output.stderr.contains("cache"), "{}", output.stderr);
        let _ = fs::remove_file(&bad);
    }
}

/// Receipts of older versions have no checksum, and anyone who may write into a cache can write one.
#[test]
fn words_of_a_receipt_from_elsewhere_are_never_the_programs_own() {
    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    assert!(!space.succeed(&["cache", "verify"]).stdout.contains("checksum"));
    let receipts = space.path("cache/receipts");
    for path in files_below(&receipts) {
        let mut receipt: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let fields = receipt.as_object_mut().unwrap();
        fields.retain(|name, _| name != "sealed" && name != "checksum");
        fields.insert("cautions".into(), serde_json::json!(["odd\u{1b}[2J\nerror: forged"]));
        let environment =
            serde_json::json!({"device": "cpu", "name": "Chip\nerror: forged\u{1b}[31m", "libraries": {}});
        fields.insert("environment".into(), environment);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(&receipt).unwrap()).unwrap();
        fs::rename(new, path).unwrap();
    }
    for args in [&["run", "p.toml"][..], &["show", "d"], &["why", "d"], &["status"], &["run", "p.toml"]] {
        let output = space.succeed(args);
        let told = output.stdout + &output.stderr;
        assert!(!told.contains('\u{1b}') && told.lines().all(|line| !line.starts_with("error")), "{args:?}: {told}");
        assert!(args[0] == "status" || told.contains("forged"), "{args:?}: {told}");
    }
    let verified = space.succeed(&["cache", "verify"]).stdout;
    assert!(
        verified.contains("4 receipts of an older version without a checksum") && verified.contains("no damage"),
        "{verified}"
    );
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
