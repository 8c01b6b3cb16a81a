//! `imp-flow cache`.

use std::process::ExitCode;

use super::session::existing_store;
use crate::{
    artifacts,
    cli::{CacheVerb, Common},
    failure::Failure,
    report,
    store::Index,
};

/// Manages the cache. `verify` exits with code 1 if it finds damage.
pub(crate) fn cache(verb: &CacheVerb, common: &Common) -> Result<ExitCode, Failure> {
    let (settings, store) = existing_store(common)?;
    match verb {
        CacheVerb::Stats => report::stats(&store.stats()?, common.json),
        CacheVerb::Verify => {
            let bar = report::Bar::bytes("checking", common.style());
            let found = store.verify(|done, total| bar.at(done, total))?;
            bar.clear();
            report::verify(&found, common.json);
            return Ok(if found.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        CacheVerb::Gc { keep, dry_run } => {
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
