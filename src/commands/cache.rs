//! `imp-flow cache`.

use std::process::ExitCode;

use super::{
    remote,
    session::{existing_store, settings},
};
use crate::{
    artifacts,
    cli::{CacheVerb, Common},
    failure::Failure,
    remote::Keep,
    report,
    store::Index,
};

/// Manages the cache. `verify` exits with code 1 if it finds damage.
pub(crate) fn cache(verb: &CacheVerb, common: &Common) -> Result<ExitCode, Failure> {
    match verb {
        CacheVerb::Push(of) => return remote::push_all(of, common),
        CacheVerb::Pull(of) => return remote::pull_all(of, common),
        // A machine without a cache may look at a remote one.
        CacheVerb::Stats { remote: true } => {
            remote::stats(&settings(common)?, common)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let (settings, store) = existing_store(common)?;
    match verb {
        CacheVerb::Push(_) | CacheVerb::Pull(_) | CacheVerb::Stats { remote: true } => {}
        CacheVerb::Stats { remote: false } => report::stats(&store.stats()?, common.json),
        CacheVerb::Verify => {
            let bar = report::Bar::bytes("checking", common.style());
            let found = store.verify(|done, total| bar.at(done, total))?;
            bar.clear();
            report::verify(&found, common.json);
            return Ok(if found.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        CacheVerb::Gc { keep, dry_run, remote: true, days } => {
            let keep = Keep { runs: *keep, days: *days };
            remote::gc(&settings, &store, keep, *dry_run, common)?;
        }
        CacheVerb::Gc { keep, dry_run, .. } => {
            let collected = store.gc(*keep, *dry_run)?;
            if !dry_run {
                artifacts::prune(&settings.artifacts, &settings.cache);
            }
            report::gc(&collected, *dry_run, common.json);
        }
        CacheVerb::Rebuild => report::rebuilt(Index::rebuild(&store)?, common.json),
    }
    Ok(ExitCode::SUCCESS)
}
