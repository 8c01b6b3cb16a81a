//! The names of objects in a remote cache. Independent of where they lie.

use crate::store::Digest;

/// The version of the layout.
pub(super) const LAYOUT: &str = "imp-flow-cache.json";
pub(super) const OBJECTS: &str = "objects";
pub(super) const RECEIPTS: &str = "receipts";
/// What runs used.
pub(super) const RUNS: &str = "runs";
pub(super) const LEASES: &str = "leases";
/// Who collects garbage.
pub(super) const GC_LEASE: &str = "leases/gc";
/// The last lease that was taken. It stays.
pub(super) const LAST_LEASE: &str = "leases/last";
/// Written to learn the time there.
pub(super) const CLOCK: &str = "leases/clock";

/// What the run `id` used.
pub(super) fn run(id: &str) -> String {
    format!("{RUNS}/{id}.json")
}

/// The content with this digest.
pub(super) fn object(digest: Digest) -> String {
    let hex = digest.hex();
    format!("{OBJECTS}/{}/{}", &hex[..2], &hex[2..])
}

/// The receipt of a key.
pub(super) fn receipt(key: Digest) -> String {
    let hex = key.hex();
    format!("{RECEIPTS}/{}/{}.json", &hex[..2], &hex[2..])
}

/// The digest in a name below `folder`; `None` for every other name.
pub(super) fn digest(name: &str, folder: &str) -> Option<Digest> {
    let rest = name.strip_prefix(folder)?.strip_prefix('/')?;
    let rest = if folder == RECEIPTS { rest.strip_suffix(".json")? } else { rest };
    let (start, end) = rest.split_once('/')?;
    let found = Digest::from_hex(&format!("{start}{end}"))?;
    // Other spellings of a digest are other names.
    (format!("{start}{end}") == found.hex() && start.len() == 2).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_digests_belong_to_each_other() {
        let some = Digest::of(b"x");
        assert_eq!(digest(&object(some), OBJECTS), Some(some));
        assert_eq!(digest(&receipt(some), RECEIPTS), Some(some));
        let hex = some.hex();
        for name in [
            format!("objects/{}/{}", &hex[..3], &hex[3..]),
            format!("objects/{hex}"),
            object(some).to_uppercase(),
            format!("{}.json", object(some)),
            "objects/../x".into(),
            receipt(some),
        ] {
            assert_eq!(digest(&name, OBJECTS), None, "{name}");
        }
    }
}
