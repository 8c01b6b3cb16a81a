//! The runner's parsers of files that others may have written, as functions of bytes: the crate `fuzz/` compiles this file and what
//! it calls, and a test replays the seeds. The stages' are in `stages/fuzzing.rs`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use imp_stages::contract::{event::Event, paths::stays_inside};

use crate::{
    executor::slurm::{state::Seen, tail::Tail},
    pipeline::{Document, Graph, Sources},
    serve::request::{self, Defaults},
    store::{Digest, Receipt, Store, TreeRef, listing_from_elsewhere},
};

/// A fuzz target: its name, which is that of its folder of seeds, and what it does with bytes.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets of the runner.
pub(crate) const TARGETS: [Target; 5] =
    [("job", job), ("pipeline", pipeline), ("receipt", receipt), ("request", request), ("tree", tree)];

/// What a job on a cluster writes of itself, and what Slurm says of it. A file that grows says what the whole one says.
fn job(bytes: &[u8]) {
    let read = |parts: &[&[u8]]| {
        let file = tempfile::NamedTempFile::new().unwrap_or_else(|error| panic!("no temporary file: {error}"));
        let mut tail = Tail::new(file.path().into());
        let mut events = Vec::new();
        for part in parts {
            (&file).write_all(part).unwrap_or_else(|error| panic!("{error}"));
            tail.read(&mut |event| events.push(event)).unwrap_or_else(|error| panic!("{error}"));
        }
        // Of progress the last is told, each time that the file is read.
        events.retain(|event| !matches!(event, Event::Progress(_)));
        (format!("{:?}", (&tail.ended, &tail.host, &tail.progress, tail.seconds())), format!("{events:?}"))
    };
    let (first, second) = bytes.split_at(bytes.len() / 2);
    assert_eq!(read(&[bytes]), read(&[first, second]));
    for line in String::from_utf8_lossy(bytes).lines() {
        let Some((_, seen)) = Seen::parse(line) else { continue };
        let _ = (seen.words(), seen.hindrance(), seen.is_over());
    }
}

/// A request for an answer. What is understood has a question, and limits.
fn request(bytes: &[u8]) {
    let defaults = Defaults { max_tokens: 64, temperature: 0.0, top_p: 1.0 };
    match request::read(bytes, "imp", defaults, 1) {
        Ok(asked) => {
            let past = asked.dialogue.past.iter().map(|(question, _)| question);
            let images: usize = past.chain([&asked.dialogue.asked]).map(|question| question.images.len()).sum();
            assert!(images <= 64 && asked.manner.stop.len() <= 4 && asked.manner.max_tokens <= 65_536);
        }
        Err(refusal) => assert!((400..500).contains(&refusal.status) && !refusal.message.is_empty(), "{refusal:?}"),
    }
}

/// A pipeline file: reading, checking, the graph, the sweep. What is valid is valid again as a run records it.
fn pipeline(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut sources = Sources::default();
    let _ = Document::parameters(text);
    let Ok(document) = Document::of_text(text.into(), "pipeline.toml".into(), &mut sources) else { return };
    if let Ok(swept) = document.sweep(&sources) {
        let _ = Graph::new(&swept);
    }
    let Ok(read) = document.pipeline(&sources) else { return };
    let _ = Graph::new(&read);
    let mut again = Sources::default();
    let recorded = Document::of_text(document.to_toml(), "pipeline.toml".into(), &mut again);
    let recorded = recorded.and_then(|document| document.pipeline(&again));
    assert!(recorded.is_ok(), "valid, but not as it is recorded: {:?}", recorded.err());
}

/// Lets `check` use a store in which `bytes` are at the path that it names.
fn with_store(bytes: &[u8], at: impl Fn(&Store, &Path) -> PathBuf, check: impl FnOnce(&Store)) {
    thread_local! {
        static STORE: Option<(tempfile::TempDir, Store)> = tempfile::tempdir().ok().and_then(|folder| {
            let store = Store::open(folder.path()).ok()?;
            Some((folder, store))
        });
    }
    STORE.with(|store| {
        let Some((root, store)) = store else { panic!("no folder for temporary files") };
        let path = at(store, root.path());
        let written = fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::write(&path, bytes));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        check(store);
        let _ = fs::remove_file(&path);
    });
}

/// A receipt, and the record of a run. What is read of a receipt can be written, and is found again.
fn receipt(bytes: &[u8]) {
    let key = Digest::of(b"key");
    let place = |store: &Store, _: &Path| store.places_of(key, key)[0].clone();
    let _ = Receipt::from_elsewhere(bytes, key, None);
    with_store(bytes, place, |store| {
        let _ = store.receipt(key);
        let found: Vec<_> = store.receipts().collect();
        for (_, receipt) in found {
            let _ = store.write_receipt(&receipt);
            assert!(matches!(store.receipt(receipt.key()), Ok(Some(_))), "{receipt:?}");
            let _ = store.remove_receipt(receipt.key());
        }
    });
    with_store(
        bytes,
        |_, root| root.join("runs/run.json"),
        |store| {
            let runs = store.runs().unwrap_or_default();
            assert!(runs.iter().all(|run| run.id == "run"), "a record that names another file");
            let _used: Vec<Digest> = runs.iter().flat_map(|run| run.keys().chain(run.outputs())).collect();
        },
    );
}

/// The list of a tree's files. It is read as it would be written, and its paths stay inside a folder.
fn tree(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    with_store(
        bytes,
        |store, _| store.object(digest),
        |store| {
            let Ok(files) = store.tree(digest) else { return };
            let lines = files.iter().map(|file| format!("{} {} {}\n", file.digest, file.size, file.path));
            assert_eq!(lines.collect::<String>().as_bytes(), bytes);
            assert!(files.iter().all(|file| stays_inside(&file.path)), "{files:?}");
            let sizes = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
            let output = TreeRef { digest, files: files.len() as u64, bytes: sizes.unwrap_or_default() };
            if let Ok(files) = listing_from_elsewhere(bytes, &output) {
                assert!(files.iter().all(|file| !file.path.contains(char::is_control)), "{files:?}");
            }
        },
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What is checked in for each target: small valid files, and files that once found a fault.
    #[test]
    fn every_target_survives_its_seeds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(seeds.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name}");
            for file in files {
                target(&fs::read(file).unwrap());
            }
        }
    }

    /// The crate `fuzz/` has a file for each target of both tables, and seeds for no other.
    #[test]
    fn targets_files_and_seeds_are_the_same() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let names = |folder: &str| {
            let entries = fs::read_dir(fuzz.join(folder)).unwrap().map(|entry| entry.unwrap().path());
            let mut names: Vec<String> =
                entries.map(|path| path.file_stem().unwrap().to_str().unwrap().into()).collect();
            names.sort();
            names
        };
        assert_eq!(names("seeds"), names("fuzz_targets"));
        assert!(TARGETS.iter().all(|(name, _)| names("seeds").contains(&(*name).to_string())));
    }
}
