//! What goes wrong in a shared folder: each costs one warning, and the results are those of a machine on its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{ALL, Lab, events, warnings};
use crate::support::files;

/// Runs the pipeline on the second machine, which makes these stages itself, with one warning that has these words.
fn makes_with_a_warning(lab: &Lab, made: &[&str], words: &str) {
    let (ran, output) = lab.ran("two");
    assert_eq!(ran, made, "{words}");
    let warnings = warnings(&output);
    assert_eq!(warnings.len(), 1, "{words}: {warnings:?}");
    assert!(warnings[0].contains(words), "{words}: {warnings:?}");
    assert!(lab.succeed("two", &["cache", "verify"]).stdout.starts_with("OK"), "{words}");
    assert_eq!(value(lab, "one"), value(lab, "two"), "{words}");
}

fn value(lab: &Lab, machine: &str) -> String {
    lab.space.read(&format!("{machine}/artifacts/diamond/d/value.txt"))
}

/// The file of the remote cache below `folder` with this text in it.
fn file_with(lab: &Lab, folder: &str, text: &str) -> PathBuf {
    let has = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).contains(text);
    lab.shared(folder).into_iter().find(has).unwrap()
}

fn receipt_of(lab: &Lab, stage: &str) -> PathBuf {
    file_with(lab, "receipts", &format!("\"stage\": \"{stage}\""))
}

/// The object of a stage's output.
fn object_of(lab: &Lab, stage: &str) -> PathBuf {
    let wanted = fs::read(lab.space.path("one/artifacts/diamond").join(stage).join("value.txt")).unwrap();
    lab.shared("objects").into_iter().find(|path| fs::read(path).unwrap() == wanted).unwrap()
}

/// What happens to a file.
type Damage = fn(&Path);

#[test]
fn wrong_bytes_cut_objects_and_missing_ones_are_made_here_and_replaced_there() {
    let damage: [(&str, Damage); 3] = [
        ("has other content than its name says", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[0] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("or was cut off", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("lacks a file", |path| fs::remove_file(path).unwrap()),
    ];
    for (words, damage) in damage {
        let lab = Lab::new();
        lab.ran("one");
        damage(&object_of(&lab, "b"));
        makes_with_a_warning(&lab, &["b"], words);
        // What was made here has replaced it.
        lab.forget("two");
        let (ran, output) = lab.ran("two");
        assert!(ran.is_empty() && warnings(&output).is_empty(), "{words}: {:?}", warnings(&output));
    }
}

/// One file that is wrong puts the others of its result in doubt: what was made here replaces all of them.
#[test]
fn many_wrong_files_of_a_result_are_replaced_at_once() {
    let lab = Lab::new();
    for machine in ["one", "two"] {
        for number in 0..12 {
            lab.space.write(&format!("{machine}/src/{number}"), format!("file {number}"));
        }
        lab.space.write(&format!("{machine}/p.toml"), "[stages.d]\nkind = \"download\"\nsource = \"src\"\n");
    }
    lab.ran("one");
    let is_file = |path: &PathBuf| fs::read(path).unwrap().starts_with(b"file ") && fs::read(path).unwrap().len() < 9;
    let objects: Vec<PathBuf> = lab.shared("objects").into_iter().filter(is_file).collect();
    assert_eq!(objects.len(), 12);
    for object in objects {
        let length = fs::read(&object).unwrap().len();
        fs::write(object, vec![b'x'; length]).unwrap();
    }
    let (ran, output) = lab.ran("two");
    assert_eq!((ran, warnings(&output).len()), (vec!["d".to_string()], 1));
    lab.forget("two");
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty(), "{:?}", warnings(&output));
}

#[test]
fn a_receipt_that_lies_is_not_believed() {
    let lab = Lab::new();
    lab.ran("one");
    let receipt = receipt_of(&lab, "b");
    let whole = fs::read_to_string(&receipt).unwrap();
    let other = fs::read_to_string(receipt_of(&lab, "c")).unwrap();
    let old: serde_json::Value = serde_json::from_str(&whole).unwrap();
    let mut unsealed = old.as_object().unwrap().clone();
    unsealed.retain(|name, _| name != "sealed" && name != "checksum");
    for (text, words) in [
        (whole[..whole.len() / 2].to_string(), "damaged or cut off"),
        (whole.replace("\"seed\": ", "\"seed\": 1"), "damaged or cut off"),
        (serde_json::to_string_pretty(&unsealed).unwrap(), "damaged or cut off"),
        (String::new(), "damaged or cut off"),
        ("[".repeat(1_000_000), "damaged or cut off"),
        ("x".repeat(5 << 20), "too large"),
        (other, "that of something else"),
    ] {
        fs::write(&receipt, text).unwrap();
        makes_with_a_warning(&lab, &["b"], words);
        assert_ne!(fs::read_to_string(&receipt).unwrap(), "", "{words}: replaced");
        lab.forget("two");
    }
}

/// Whoever may write there can write a receipt with a right checksum.
#[test]
fn a_list_of_files_that_leads_outside_is_refused() {
    let lab = Lab::new();
    lab.ran("one");
    let (receipt, object) = (receipt_of(&lab, "b"), object_of(&lab, "b"));
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let content = fs::read(&object).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    for (name, words) in [
        ("../../../evil", "damaged"),
        ("/etc/evil", "damaged"),
        ("evil\u{1b}[2J", "names that no folder can have"),
        (&"x".repeat(300), "names that no folder can have"),
    ] {
        let listing = format!("{} {} {name}\n", digest(&content), content.len());
        let hex = digest(listing.as_bytes());
        let path = lab.space.path("shared/objects").join(&hex[..2]).join(&hex[2..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &listing).unwrap();
        let mut forged = whole.clone();
        forged["output"] = serde_json::json!({"digest": hex, "files": 1, "bytes": content.len()});
        fs::write(&receipt, sealed(&forged)).unwrap();
        makes_with_a_warning(&lab, &["b"], words);
        assert!(!lab.space.path("two/evil").exists() && !Path::new("/etc/evil").exists());
        lab.forget("two");
    }
    for (field, number, words) in [
        ("bytes", u64::MAX, "an impossible size"),
        ("bytes", 1 << 49, "other sizes than its receipt"),
        ("files", 9, "other sizes"),
    ] {
        let mut forged = whole.clone();
        forged["output"][field] = number.into();
        fs::write(&receipt, sealed(&forged)).unwrap();
        makes_with_a_warning(&lab, &["b"], words);
        lab.forget("two");
    }
}

/// A receipt with its checksum, as the program writes it.
fn sealed(receipt: &serde_json::Value) -> String {
    let mut fields = receipt.as_object().unwrap().clone();
    fields.retain(|name, _| name != "sealed" && name != "checksum");
    let text = serde_json::to_string_pretty(&fields).unwrap();
    let fields = text.strip_prefix('{').unwrap().strip_suffix("\n}").unwrap();
    let open = format!("{{\n  \"sealed\": true,{fields}");
    format!("{open},\n  \"checksum\": \"{}\"\n}}", blake3::hash(open.as_bytes()).to_hex())
}

/// What the words of another machine may not do.
#[test]
fn texts_from_there_are_shown_harmlessly() {
    let lab = Lab::new();
    lab.ran("one");
    let receipt = receipt_of(&lab, "d");
    let mut forged: serde_json::Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    let log = "2026 \u{1b}[2Jwiped\rover\nerror: forged\n";
    let hex = blake3::hash(log.as_bytes()).to_hex().to_string();
    let path = lab.space.path("shared/objects").join(&hex[..2]).join(&hex[2..]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, log).unwrap();
    forged["log"] = hex.into();
    for field in ["host", "reason", "pipeline", "made_by"] {
        forged[field] = "odd\u{1b}[2J\nerror: forged".into();
    }
    forged["cautions"] = serde_json::json!(["odd\u{1b}[2J\nerror: forged"]);
    forged["timing"] = serde_json::json!({"finished": u64::MAX, "seconds": 1e300});
    fs::write(&receipt, sealed(&forged)).unwrap();
    let output = lab.succeed("two", &["run", "p.toml"]);
    let mut told = vec![output.stdout + &output.stderr];
    for args in [
        &["show", "d"][..],
        &["why", "d"],
        &["status"],
        &["log", "d"],
        &["cache", "stats"],
        &["cache", "stats", "--remote"],
    ] {
        let output = lab.succeed("two", args);
        told.push(output.stdout + &output.stderr);
    }
    for told in told {
        assert!(!told.contains(['\u{1b}', '\r']), "{told}");
        assert!(told.lines().all(|line| !line.starts_with("error")) || told.starts_with("2026"), "{told}");
    }
}

#[test]
fn a_remote_that_is_gone_or_something_else_costs_one_warning() {
    let lab = Lab::new();
    lab.ran("one");
    let shared = lab.space.path("shared");
    fs::rename(&shared, lab.space.path("away")).unwrap();
    makes_with_a_warning(&lab, &ALL, "there is no such folder");
    assert!(!shared.exists(), "where a disk is not mounted, nothing is created");
    fs::write(&shared, "").unwrap();
    lab.forget("two");
    makes_with_a_warning(&lab, &ALL, "it is not a folder");
    fs::remove_file(&shared).unwrap();
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("imp-flow-cache.json"), "{\"imp-flow-cache\": 2}").unwrap();
    lab.forget("two");
    makes_with_a_warning(&lab, &ALL, "another version of imp-flow");
    // What could not be pushed then is pushed once it can be.
    fs::remove_dir_all(&shared).unwrap();
    fs::create_dir(&shared).unwrap();
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty());
    assert_eq!(events(&output, "remote")[0]["sent"], 4);
    assert_eq!(lab.shared("receipts").len(), 4);
    assert!(files(&lab.space.path("two/cache/unsent")).is_empty());
}

#[test]
fn without_rights_there_is_one_warning() {
    let lab = Lab::new();
    // The permissions of folders don't stop root.
    let is_root = fs::read_to_string("/proc/self/status").is_ok_and(|text| text.contains("Uid:\t0"));
    lab.ran("one");
    if !is_root {
        for folder in ["receipts", "objects", "tmp", "runs"] {
            let path = lab.space.path("shared").join(folder);
            fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
        }
        lab.succeed("two", &["run", "p.toml", "--set", "stages.a.text=x"]);
    }
    // Who only reads is refused nothing, and changes nothing.
    let shared = lab.space.path("shared").display().to_string();
    lab.settings("two", &format!("remote = \"file://{shared}\"\nremote_access = \"read\"\n"));
    let before = files(&lab.space.path("shared"));
    let output = lab.succeed("two", &["--json", "run", "p.toml", "--set", "stages.d.text=x"]);
    assert_eq!((events(&output, "pulled").len(), events(&output, "finished").len()), (3, 1));
    assert_eq!(warnings(&output), [""; 0]);
    assert_eq!(files(&lab.space.path("shared")), before);
}

#[test]
fn two_machines_at_once_leave_one_receipt_for_each_stage() {
    let lab = Lab::new();
    let mut runs: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|machine| {
            let args = ["run", "p.toml", "--set", "stages.a.steps=2", "--set", "stages.a.step_ms=50"];
            lab.command(machine, &args)
                .stderr(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for run in &mut runs {
        assert!(run.wait().unwrap().success());
    }
    assert_eq!(lab.shared("receipts").len(), 4);
    assert_eq!(value(&lab, "one"), value(&lab, "two"));
    for machine in ["one", "two"] {
        assert!(lab.succeed(machine, &["cache", "verify"]).stdout.starts_with("OK"));
    }
    let stats = lab.succeed("one", &["cache", "stats", "--remote"]).stdout;
    assert!(stats.contains("4 results") && stats.contains("used by 2 runs"), "{stats}");
}

#[test]
fn what_was_cut_off_goes_on_where_it_was() {
    let lab = Lab::new();
    lab.ran("one");
    let object = object_of(&lab, "a");
    let bytes = fs::read(&object).unwrap();
    let name = object.strip_prefix(lab.space.path("shared/objects")).unwrap().to_string_lossy().replace('/', "");
    // Half of it has arrived; the remote cache has another first half now, which is not asked for.
    let half = bytes.len() / 2;
    lab.space.write(&format!("two/cache/tmp/incoming-{name}"), &bytes[..half]);
    lab.space.write("two/cache/VERSION", "1");
    let mut other = bytes.clone();
    other[0] ^= 1;
    fs::write(&object, &other).unwrap();
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty(), "{:?}", warnings(&output));
    // What has arrived may be wrong, as after a power failure: then all of it is fetched.
    fs::write(&object, &bytes).unwrap();
    lab.forget("two");
    lab.space.write(&format!("two/cache/tmp/incoming-{name}"), &other[..half]);
    lab.space.write("two/cache/VERSION", "1");
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty(), "{:?}", warnings(&output));
    assert!(files(&lab.space.path("two/cache/tmp")).is_empty());
}

#[test]
fn what_this_machine_can_not_make_it_takes() {
    let lab = Lab::new();
    let shared = lab.space.path("shared").display().to_string();
    let asks = format!("{}\n[stages.b.runtime]\nmemory = \"2GB\"\n", crate::support::DIAMOND);
    for (machine, memory) in [("one", "4GB"), ("two", "1GB")] {
        lab.space.write(&format!("{machine}/p.toml"), &asks);
        lab.settings(machine, &format!("remote = \"file://{shared}\"\nmemory = \"{memory}\"\n"));
    }
    let refused = lab.run("two", &["run", "p.toml"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("can never run here"), "{}", refused.stderr);
    lab.ran("one");
    let (ran, output) = lab.ran("two");
    assert!(ran.is_empty() && warnings(&output).is_empty());
    // The remote cache seemed to have it.
    lab.forget("two");
    fs::write(object_of(&lab, "b"), "x").unwrap();
    let failed = lab.run("two", &["run", "p.toml"]);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("and the remote cache does not have its result"), "{}", failed.stderr);
}
