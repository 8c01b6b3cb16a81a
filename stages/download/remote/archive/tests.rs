//! Names in archives that would change, or that two entries share.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;
use tar::EntryType::{Directory, GNULongLink, GNULongName, Regular, XHeader};

use super::*;
use crate::{
    Stage,
    contract::{figure::Figure, input::Input},
    testing::Trial,
};

/// A kind that unpacks the file of its input.
struct Unpack;

impl Stage for Unpack {
    const KIND: &'static str = "unpack";
    const VERSION: u32 = 0;
    const ABOUT: &'static str = "";
    const INPUTS: &'static [Input] = &[];
    const FIGURES: &'static [Figure] = crate::download::Download::FIGURES;
    type Config = String;

    fn run(name: &String, job: &Job) -> Result<(), StageError> {
        let format = Format::of(name).unwrap();
        unpack(job, &job.input("folder")?.join(name), name, format, &job.output()).map(drop)
    }
}

fn tar(names: &[&[u8]]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = tar::Header::new_gnu();
        // `set_path` would refuse hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, b"x".as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn zip(names: &[&str]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for name in names {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"x").unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn every_entry_keeps_its_name_or_is_refused() {
    let controls = "contains control characters";
    for (file, bytes, why) in [
        ("a.tar", tar(&[b"caf\xe9.txt", b"caf\xe8.txt"]), r"the name `caf\xe9.txt` is not UTF-8".to_string()),
        ("a.tar", tar(&[b"a.txt\r"]), format!(r"the name `a.txt\r` {controls}")),
        ("a.tar", tar(&[b"\x1b[2J/a"]), format!(r"the name `\u{{1b}}[2J/a` {controls}")),
        ("a.zip", zip(&["a.txt\r"]), format!(r"the name `a.txt\r` {controls}")),
        ("a.tar", tar(&[b"a", b"b", b"a"]), "the name `a` is the name of two entries".into()),
        ("a.zip", zip(&["d/a", "d/./a"]), "the name `d/./a` is the name of two entries".into()),
    ] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(file), bytes).unwrap();
        let work = root.path().join("work");
        let error = Trial::new(&work, &[("folder", &folder)]).run::<Unpack>(&json!(file)).error();
        assert_eq!(error.to_string(), format!("refused to unpack the archive {file}: {why}"));
        assert!(error.help().unwrap().contains("rename the file"), "{error:?}");
    }
}

/// A tar whose first entry says something long about the next.
fn talkative(kind: tar::EntryType, bytes: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, bytes) in [(kind, bytes), (Regular, 1)] {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, io::repeat(b'a').take(bytes)).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn what_a_decoder_keeps_in_memory_is_limited() {
    let gz = |tar: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        encoder.finish().unwrap()
    };
    let zst = |tar: &[u8]| zstd::encode_all(tar, 1).unwrap();
    let long = |kind| talkative(kind, 8 << 20);
    let name = "take more than 1048576 bytes";
    let bomb = "it may be a zip bomb";
    for (file, bytes, why) in [
        ("a.tar", long(XHeader), name),
        ("a.tgz", gz(&long(XHeader)), name),
        ("a.tzst", zst(&long(XHeader)), name),
        ("a.tgz", gz(&long(GNULongName)), name),
        ("a.tgz", gz(&long(GNULongLink)), name),
        // What nothing is written for counts, too.
        ("a.tzst", zst(&talkative(Directory, 80 << 20)), bomb),
    ] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(file), bytes).unwrap();
        let error = Trial::new(&root.path().join("work"), &[("folder", &folder)]).run::<Unpack>(&json!(file)).error();
        assert!(error.to_string().contains(why), "{file}: {error}");
    }
}

/// All files and folders below `folder`, in order.
fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever stands in an archive, unpacking it ends, and nothing is written outside the folder.
    #[test]
    fn hostile_archives_do_no_harm(
        kind in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let plain = tar(&[b"a/b.txt", b"c.txt", b"../d.txt"]);
        let (name, mut bytes) = match kind {
            0 => ("a.tar", plain),
            1 => ("a.tzst", zstd::encode_all(plain.as_slice(), 1).unwrap()),
            2 => ("a.zip", zip(&["a/b.txt", "c.txt", "../d.txt"])),
            _ => ("a.tar", talkative(XHeader, 40)),
        };
        for (at, with) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *with;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
        let work = root.path().join("work");
        drop(Trial::new(&work, &[("folder", &folder)]).run::<Unpack>(&json!(name)));
        prop_assert_eq!(names(root.path()), [folder.clone(), work.clone()]);
        prop_assert_eq!(names(&folder), [folder.join(name)]);
        prop_assert_eq!(names(&work), [work.join("checkpoint"), work.join("out")]);
    }
}

/// Unpacks an archive of this name, and lists what was in it.
fn unpacked(name: &str, bytes: &[u8]) -> Result<Vec<PathBuf>, StageError> {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
    let outcome = Trial::new(&root.path().join("work"), &[("folder", &folder)]).run::<Unpack>(&json!(name));
    outcome.result.map(|()| crate::testing::tree(&outcome.out).into_keys().collect())
}

#[test]
fn tar_files_in_xz_are_unpacked() {
    let mut packed = Vec::new();
    let mut encoder = liblzma::write::XzEncoder::new(&mut packed, 6);
    encoder.write_all(&tar(&[b"a.txt", b"b/c.txt"])).unwrap();
    encoder.finish().unwrap();
    assert_eq!(unpacked("a.tar.xz", &packed).unwrap(), [Path::new("a.txt"), Path::new("b/c.txt")]);
    let error = unpacked("a.tar.xz", &packed[..packed.len() / 2]).unwrap_err().to_string();
    assert!(error.starts_with("can't unpack the archive a.tar.xz"), "{error}");
}

/// They stand after all that entries need, and `tar` knows none itself.
#[test]
fn checksums_of_compressed_tar_files_are_checked() {
    let plain = tar(&[b"a.txt"]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&plain).unwrap();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
    xz.write_all(&plain).unwrap();
    for (name, packed) in [
        ("a.tar.gz", gzip.finish().unwrap()),
        ("a.tar.zst", zstd.finish().unwrap()),
        ("a.tar.xz", xz.finish().unwrap()),
    ] {
        assert_eq!(unpacked(name, &packed).unwrap(), [Path::new("a.txt")], "{name}");
        let mut damaged = packed.clone();
        damaged[packed.len() - 5] ^= 1;
        assert!(unpacked(name, &damaged).is_err(), "{name}: another checksum");
        assert!(unpacked(name, &packed[..packed.len() - 2]).is_err(), "{name}: cut off");
    }
    // The content, which is stored as it is.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    packed.write_all(&plain).unwrap();
    let mut packed = packed.finish().unwrap();
    let at = packed.iter().rposition(|byte| *byte == b'x').unwrap();
    packed[at] = b'y';
    assert!(unpacked("a.tar.gz", &packed).is_err());
    packed[at] = b'x';
    packed.extend([0; 512]);
    assert_eq!(unpacked("a.tar.gz", &packed).unwrap(), [Path::new("a.txt")], "zeros may follow");
}
