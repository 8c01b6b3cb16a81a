//! Results that someone changed: no stage reads them, what was changed is put right and said, and nothing wrong stays cached.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    thread::sleep,
    time::Duration,
};

use crate::support::{Space, diamond, files, ran};

/// `a -> b -> c`; `b` takes a while with `steps`.
fn chain(steps: usize) -> String {
    format!(
        "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nfiles = 3\ntext = \"a\"\n[stages.b]\nkind = \"synthetic\"\n\
         after = \"a\"\ntext = \"b\"\nsteps = {steps}\nstep_ms = 20\n[stages.c]\nkind = \"synthetic\"\nafter = \"b\"\n"
    )
}

fn space() -> Space {
    let space = Space::new();
    space.write("p.toml", chain(0));
    space.succeed(&["run", "p.toml"]);
    space
}

/// Writes into a file and sets its modification time back.
fn write_in_place(path: &Path) {
    let modified = path.metadata().unwrap().modified().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"0123", 0).unwrap();
    file.set_modified(modified).unwrap();
}

/// Replaces a file by a new one, as an editor does.
fn replace(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::write(path, "edited").unwrap();
}

#[test]
fn no_stage_reads_a_changed_input() {
    let expected = {
        let space = space();
        space.succeed(&["run", "p.toml", "--set", "stages.b.text=x"]);
        space.digests("p")
    };
    for change in [write_in_place, replace, |path: &Path| fs::remove_file(path).unwrap()] {
        let space = space();
        let value = fs::read(space.path("artifacts/p/a/value.txt")).unwrap();
        change(&space.path("artifacts/p/a/value.txt"));
        let run = space.succeed(&["run", "p.toml", "--set", "stages.b.text=x"]);
        assert!(run.stderr.contains("changed: value.txt"), "{}", run.stderr);
        assert_eq!(space.digests("p"), expected);
        assert_eq!(fs::read(space.path("artifacts/p/a/value.txt")).unwrap(), value);
        let verify = space.succeed(&["cache", "verify"]).stdout;
        assert!(verify.contains("no damage found"), "{verify}");
        space.succeed(&["run", "p.toml"]);
        assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date: 3 of 3 cached"));
    }
}

#[test]
fn an_input_that_cant_be_restored_is_made_again_first() {
    let space = space();
    write_in_place(&space.path("artifacts/p/a/value.txt"));
    let only = space.run(&["run", "p.toml", "--set", "stages.b.text=x", "--only", "b"]);
    assert_eq!(only.code, Some(1), "{}", only.stderr);
    assert!(only.stderr.contains("its input `a` was changed and can't be restored"), "{}", only.stderr);
    assert!(only.stderr.contains("include `a`"), "{}", only.stderr);
    assert_eq!(ran(&space, &["run", "p.toml", "--set", "stages.b.text=x"]), ["a", "b", "c"]);
    // Nothing that used the right content before is lost.
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date: 3 of 3 cached"));

    write_in_place(&space.path("artifacts/p/a/value.txt"));
    assert_eq!(ran(&space, &["run", "p.toml", "--force", "b"]), ["a", "b"]);
}

#[test]
fn forcing_a_stage_ends_with_the_right_content() {
    for change in [write_in_place, replace] {
        let space = space();
        let value = fs::read(space.path("artifacts/p/a/value.txt")).unwrap();
        change(&space.path("artifacts/p/a/value.txt"));
        let run = space.succeed(&["run", "p.toml", "--force", "a"]);
        assert!(run.stderr.contains("its artifact was changed: value.txt"), "{}", run.stderr);
        assert_eq!(fs::read(space.path("artifacts/p/a/value.txt")).unwrap(), value);
        space.succeed(&["cache", "verify"]);
    }
}

#[test]
fn an_up_to_date_run_sees_changed_folders() {
    let changes: [fn(&Path); 4] = [
        |tree| replace(&tree.join("value.txt")),
        |tree| fs::remove_file(tree.join("00/000000")).unwrap(),
        |tree| fs::write(tree.join("01/new"), "x").unwrap(),
        |tree| fs::remove_dir_all(tree.join("02")).unwrap(),
    ];
    for noted in [false, true] {
        for change in changes {
            let space = space();
            if noted {
                sleep(Duration::from_millis(2100));
                space.succeed(&["run", "p.toml"]);
                assert_eq!(fs::read_dir(space.path("cache/notes")).unwrap().count(), 1);
            }
            change(&space.path("artifacts/p/a").canonicalize().unwrap());
            let run = space.succeed(&["run", "p.toml"]);
            assert!(run.stdout.contains("p is up to date: 3 of 3 cached"), "{}", run.stdout);
            assert!(run.stderr.contains("a: warning: its artifact was changed: "), "{}", run.stderr);
            assert!(space.succeed(&["run", "p.toml"]).stderr.is_empty(), "it is said once");
            space.succeed(&["cache", "verify"]);
        }
    }
}

#[test]
fn verify_finds_every_change_once() {
    let changes: [fn(&Path); 4] = [
        |tree| replace(&tree.join("value.txt")),
        |tree| fs::remove_file(tree.join("value.txt")).unwrap(),
        |tree| fs::write(tree.join("new"), "x").unwrap(),
        |tree| write_in_place(&tree.join("value.txt")),
    ];
    for change in changes {
        let space = space();
        let expected = space.digests("p");
        change(&space.path("artifacts/p/a").canonicalize().unwrap());
        let found = space.run(&["cache", "verify"]);
        assert_eq!(found.code, Some(1), "{}", found.stdout);
        assert!(found.stdout.contains("1 result changed"), "{}", found.stdout);
        assert!(space.succeed(&["cache", "verify"]).stdout.contains("no damage found"));
        space.succeed(&["run", "p.toml"]);
        assert_eq!(space.digests("p"), expected);
        assert!(space.path("artifacts/p/a/value.txt").is_file() && !space.path("artifacts/p/a/new").exists());
    }
}

#[test]
fn an_input_that_changes_while_it_is_read_fails_the_stage() {
    let space = Space::new();
    space.write("p.toml", chain(0));
    space.succeed(&["run", "p.toml", "--until", "a"]);
    space.write("p.toml", chain(100));
    let mut runner = space.start(&["run", "p.toml"]);
    while fs::read_dir(space.path("cache/work")).unwrap().count() == 0 {
        sleep(Duration::from_millis(10));
    }
    sleep(Duration::from_millis(300));
    write_in_place(&space.path("artifacts/p/a/value.txt"));
    assert_eq!(runner.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_dir(space.path("cache/work")).unwrap().count(), 0, "its checkpoint may be wrong");
    space.write("p.toml", chain(0));
    assert_eq!(ran(&space, &["run", "p.toml"]), ["a", "b", "c"]);
    let right = space.digests("p");
    let undisturbed = Space::new();
    undisturbed.write("p.toml", chain(0));
    undisturbed.succeed(&["run", "p.toml"]);
    assert_eq!(right, undisturbed.digests("p"));
}

#[test]
fn a_source_is_read_again_when_only_its_change_time_differs() {
    let space = Space::new();
    space
        .write("src/a.txt", "old ")
        .write("p.toml", "name = \"p\"\n[stages.x]\nkind = \"download\"\nsource = \"src\"\n");
    let old = std::time::UNIX_EPOCH - Duration::from_hours(1);
    OpenOptions::new().write(true).open(space.path("src/a.txt")).unwrap().set_modified(old).unwrap();
    // What was written less than two seconds ago is read in any case.
    sleep(Duration::from_millis(2100));
    space.succeed(&["run", "p.toml"]);
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date"));
    write_in_place(&space.path("src/a.txt"));
    space.succeed(&["run", "p.toml"]);
    assert_eq!(space.read("artifacts/p/x/a.txt"), "0123");
}

#[test]
fn what_a_user_wrote_into_an_artifact_is_kept_until_gc() {
    let space = space();
    space.write("artifacts/p/a/notes.txt", "my notes");
    let run = space.succeed(&["run", "p.toml"]);
    let kept = run.stderr.split("the changed folder is HERE/").nth(1).and_then(|rest| rest.split(' ').next());
    let kept = space.path(kept.unwrap());
    assert_eq!(fs::read_to_string(kept.join("notes.txt")).unwrap(), "my notes");
    space.succeed(&["cache", "gc"]);
    assert!(!kept.exists());
}

#[test]
fn a_user_can_delete_the_cache() {
    let space = space();
    let folders = walk(&space.path("cache/trees"));
    assert!(folders.iter().all(|path| path.metadata().unwrap().permissions().mode() & 0o200 != 0));
    let file = space.path("artifacts/p/a/value.txt").metadata().unwrap();
    assert_eq!(file.permissions().mode() & 0o222, 0, "files are read-only");
}

/// All folders below `folder`.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let below = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    below.flat_map(|path| [vec![path.clone()], walk(&path)].concat()).collect()
}

/// Whoever can write to a shared cache can put anything there: nothing waits for it.
#[test]
fn what_is_no_file_in_place_of_a_receipt_is_set_aside() {
    let replace: [fn(&Path); 2] = [
        |path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
        |path| fs::create_dir(path).unwrap(),
    ];
    for replace in replace {
        let space = diamond();
        space.succeed(&["run", "p.toml"]);
        let before = space.digests("diamond");
        for path in files(&space.path("cache/receipts")) {
            fs::remove_file(&path).unwrap();
            replace(&path);
        }
        space.succeed(&["run", "p.toml"]);
        assert_eq!(space.digests("diamond"), before);
        assert_eq!(space.succeed(&["cache", "verify"]).code, Some(0));
    }
}
