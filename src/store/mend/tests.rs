//! Trees that were changed behind the store's back, with and without hard links.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    time::Duration,
};

use super::*;
use crate::store::{Manifest, Product, Provenance, Receipt, TreeRef, now};

struct Shop {
    root: tempfile::TempDir,
    store: Store,
}

impl Shop {
    fn new(links: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store { links, ..Store::open(&root.path().join("cache")).unwrap() };
        Self { root, store }
    }

    /// Takes in a folder with three files, under the key `name`.
    fn make(&self, name: &str, inputs: &[Digest]) -> (Digest, TreeRef) {
        let out = self.root.path().join("out");
        fs::create_dir_all(out.join("sub")).unwrap();
        for (path, text) in [("a.txt", "alpha"), ("sub/b.txt", "beta"), ("sub/c.txt", "gamma")] {
            fs::write(out.join(path), format!("{text} {inputs:?}")).unwrap();
        }
        let (output, mended) = self.store.add_folder(&out).unwrap();
        assert_eq!(mended, None);
        (self.write_receipt(name, inputs, output), output)
    }

    fn write_receipt(&self, name: &str, inputs: &[Digest], output: TreeRef) -> Digest {
        let inputs = inputs.iter().enumerate().map(|(at, tree)| (at.to_string(), *tree)).collect();
        let config = serde_json::json!({ "name": name });
        let (kind, sources) = ("k".to_string(), BTreeMap::new());
        let manifest = Manifest { kind, version: 1, seed: 0, config, sources, inputs };
        let key = manifest.key();
        let provenance = Provenance {
            manifest,
            pipeline: "p".into(),
            stage: name.into(),
            reason: String::new(),
            previous: None,
            made_by: String::new(),
        };
        let product = Product::of(output);
        self.store.write_receipt(&Receipt::new(provenance, product)).unwrap();
        key
    }

    fn has(&self, key: Digest) -> bool {
        self.store.receipt(key).unwrap().is_some()
    }
}

/// Writes into a file and sets its modification time back.
fn write_in_place(path: &Path) {
    let modified = path.metadata().unwrap().modified().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"X", 0).unwrap();
    file.set_modified(modified).unwrap();
}

/// A change of a tree's folder that leaves its objects as they are where files are links, and how it is described.
type Change = (&'static str, fn(&Path));

const CHANGES: [Change; 7] = [
    ("a.txt has other content", |tree| {
        fs::remove_file(tree.join("a.txt")).unwrap();
        fs::write(tree.join("a.txt"), "alpha []".replace('a', "x")).unwrap();
    }),
    ("sub/b.txt is missing", |tree| fs::remove_file(tree.join("sub/b.txt")).unwrap()),
    ("sub/b.txt is missing, sub/c.txt is missing", |tree| fs::remove_dir_all(tree.join("sub")).unwrap()),
    ("sub/new was added", |tree| fs::write(tree.join("sub/new"), "").unwrap()),
    ("a.txt is not a regular file any more", |tree| {
        fs::remove_file(tree.join("a.txt")).unwrap();
        symlink("sub/b.txt", tree.join("a.txt")).unwrap();
    }),
    ("a.txt is not a regular file any more", |tree| {
        fs::remove_file(tree.join("a.txt")).unwrap();
        fs::create_dir(tree.join("a.txt")).unwrap();
    }),
    ("a.txt has other content, sub/b.txt has other content", |tree| {
        fs::rename(tree.join("a.txt"), tree.join("x")).unwrap();
        fs::rename(tree.join("sub/b.txt"), tree.join("a.txt")).unwrap();
        fs::rename(tree.join("x"), tree.join("sub/b.txt")).unwrap();
    }),
];

#[test]
fn a_changed_folder_is_restored_at_a_hit_and_as_an_input() {
    for links in [true, false] {
        for (what, change) in CHANGES {
            for as_input in [false, true] {
                let shop = Shop::new(links);
                let (_, tree) = shop.make("a", &[]);
                let path = shop.store.tree_path(tree.digest);
                change(&path);
                let ask = || {
                    let store = &shop.store;
                    if as_input { store.input_folder(tree.digest) } else { store.tree_folder(tree.digest) }.unwrap()
                };
                let TreeFolder::Restored(_, mended) = ask() else { panic!("{what}: {:?}", ask()) };
                assert_eq!(mended.what, what);
                assert!(mended.to_string().contains("restored from the cache"), "{mended}");
                assert_eq!(fs::read_to_string(path.join("a.txt")).unwrap(), "alpha []");
                assert_eq!(fs::read_to_string(path.join("sub/b.txt")).unwrap(), "beta []");
                assert!(!path.join("sub/new").exists());
                assert!(path.with_extension(SET_ASIDE).is_dir(), "what was changed is kept");
                assert!(matches!(ask(), TreeFolder::Intact(_)), "{what}");
            }
        }
    }
}

#[test]
fn a_file_that_was_written_into_is_never_an_input() {
    let shop = Shop::new(true);
    let (key, tree) = shop.make("a", &[]);
    let path = shop.store.tree_path(tree.digest);
    write_in_place(&path.join("a.txt"));
    // A hit looks at folders only.
    assert!(matches!(shop.store.tree_folder(tree.digest).unwrap(), TreeFolder::Intact(_)));
    let TreeFolder::Lost(Some(mended)) = shop.store.input_folder(tree.digest).unwrap() else { panic!() };
    assert_eq!(mended.what, "a.txt has other content");
    assert_eq!(mended.removed, BTreeSet::from(["p/a".to_string()]));
    assert!(!shop.has(key) && !path.exists());
    assert!(matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Lost(None)));
    // Making it again gives the right content.
    let (key, _) = shop.make("a", &[]);
    assert!(shop.has(key) && matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Intact(_)));
    assert_eq!(fs::read_to_string(path.join("a.txt")).unwrap(), "alpha []");
}

#[test]
fn without_links_a_copy_that_was_written_into_is_restored() {
    let shop = Shop::new(false);
    let (_, tree) = shop.make("a", &[]);
    let path = shop.store.tree_path(tree.digest);
    write_in_place(&path.join("sub/b.txt"));
    assert!(matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Restored(..)));
    assert_eq!(fs::read_to_string(path.join("sub/b.txt")).unwrap(), "beta []");
    assert!(path.join("sub/b.txt").metadata().unwrap().permissions().readonly());
}

#[test]
fn only_what_may_come_from_the_change_is_removed() {
    let shop = Shop::new(true);
    let (_, tree) = shop.make("a", &[]);
    let (before, _) = shop.make("before", &[tree.digest]);
    // As a stage does at its end.
    assert!(shop.store.is_still_intact(tree.digest, now() as u64));
    std::thread::sleep(Duration::from_millis(1100));
    fs::write(shop.store.tree_path(tree.digest).join("new"), "").unwrap();
    let (after, _) = shop.make("after", &[tree.digest]);
    let TreeFolder::Restored(_, mended) = shop.store.tree_folder(tree.digest).unwrap() else { panic!() };
    assert_eq!(mended.removed, BTreeSet::from(["p/after".to_string()]));
    assert!(shop.has(before) && !shop.has(after));

    // Where nothing was noted, as in the cache of an older version, the times of the change count.
    std::thread::sleep(Duration::from_millis(1100));
    fs::write(shop.store.tree_path(tree.digest).join("new"), "").unwrap();
    shop.store.forget_checks(tree.digest);
    let (after, _) = shop.make("after", &[tree.digest]);
    assert!(matches!(shop.store.tree_folder(tree.digest).unwrap(), TreeFolder::Restored(..)));
    assert!(shop.has(before) && !shop.has(after));

    // And where these say nothing, every user is removed.
    let path = shop.store.tree_path(tree.digest).join("a.txt");
    write_in_place(&path);
    shop.store.forget_checks(tree.digest);
    let (after, _) = shop.make("after", &[tree.digest]);
    assert!(matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Lost(Some(_))));
    assert!(!shop.has(before) && !shop.has(after));
}

#[test]
fn verify_says_what_was_changed_once_and_puts_it_right() {
    for links in [true, false] {
        for (what, change) in CHANGES {
            let shop = Shop::new(links);
            let (_, tree) = shop.make("a", &[]);
            let path = shop.store.tree_path(tree.digest);
            change(&path);
            let found = shop.store.verify(|_, _| ()).unwrap();
            assert_eq!(found.changed.len(), 1, "{what}: {found:?}");
            assert!(found.changed[0].contains(what), "{what}: {found:?}");
            assert!(shop.store.verify(|_, _| ()).unwrap().is_clean(), "{what}");
            assert!(matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Intact(_)));
            assert_eq!(fs::read_to_string(path.join("a.txt")).unwrap(), "alpha []");
        }
        // Written in place, without a trace in its times.
        let shop = Shop::new(links);
        let (_, tree) = shop.make("a", &[]);
        let path = shop.store.tree_path(tree.digest).join("a.txt");
        write_in_place(&path);
        let known = shop.store.inspect(tree.digest, &shop.store.tree(tree.digest).unwrap(), Depth::Fresh);
        shop.store.note_intact(tree.digest, &known).unwrap();
        let found = shop.store.verify(|_, _| ()).unwrap();
        assert!(!found.is_clean() && found.changed.len() == 1, "{found:?}");
        assert!(shop.store.verify(|_, _| ()).unwrap().is_clean());
    }
}

#[test]
fn a_tree_that_is_made_again_replaces_a_changed_one() {
    for links in [true, false] {
        let shop = Shop::new(links);
        let (_, tree) = shop.make("a", &[]);
        let path = shop.store.tree_path(tree.digest);
        write_in_place(&path.join("a.txt"));
        fs::write(path.join("sub/new"), "").unwrap();
        let out = shop.root.path().join("out");
        fs::create_dir_all(out.join("sub")).unwrap();
        for (name, text) in [("a.txt", "alpha []"), ("sub/b.txt", "beta []"), ("sub/c.txt", "gamma []")] {
            fs::write(out.join(name), text).unwrap();
        }
        let (again, mended) = shop.store.add_folder(&out).unwrap();
        assert_eq!(again, tree);
        assert_eq!(mended.unwrap().what, "a.txt has other content, sub/new was added");
        assert_eq!(fs::read_to_string(path.join("a.txt")).unwrap(), "alpha []");
        assert!(!path.join("sub/new").exists() && !out.exists());
        assert!(shop.store.verify(|_, _| ()).unwrap().is_clean());
    }
}

#[test]
fn a_restored_folder_never_holds_a_damaged_object() {
    let shop = Shop::new(true);
    let (_, tree) = shop.make("a", &[]);
    let path = shop.store.tree_path(tree.digest);
    write_in_place(&path.join("a.txt"));
    fs::remove_dir_all(&path).unwrap();
    assert!(matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Lost(Some(_))));
    assert!(!shop.store.object(Digest::of(b"alpha []")).exists());
}

#[test]
fn a_file_or_link_in_place_of_a_tree_is_replaced() {
    let replace: [fn(&Path); 2] =
        [|path| fs::write(path, "").unwrap(), |path| symlink("/no/such/folder", path).unwrap()];
    for replace in replace {
        let shop = Shop::new(true);
        let (_, tree) = shop.make("a", &[]);
        let path = shop.store.tree_path(tree.digest);
        fs::remove_dir_all(&path).unwrap();
        replace(&path);
        let TreeFolder::Restored(_, mended) = shop.store.tree_folder(tree.digest).unwrap() else { panic!() };
        assert_eq!(mended.what, "its folder is not a folder any more");
        assert_eq!(fs::read_to_string(path.join("a.txt")).unwrap(), "alpha []");
        assert!(matches!(shop.store.input_folder(tree.digest).unwrap(), TreeFolder::Intact(_)));
    }
}
