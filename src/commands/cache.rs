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

/// Looks after the cache. Damage found by `verify` gives exit code 1.
pub(crate) fn cache(verb: &CacheVerb, common: &Common) -> Result<ExitCode, Failure> {
    let (settings, store) = existing_store(common)?;
    match verb {
        CacheVerb::Stats => report::stats(&store.stats()?, common.json),
        CacheVerb::Verify => {
            let bar = report::Bar::bytes("reading", common.style());
            let found = store.verify(|done, total| bar.at(done, total))?;
            bar.clear();
            report::checkup(&found, common.json);
            return Ok(if found.damaged.is_empty() && found.lost.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            });
        }
        CacheVerb::Gc { keep, dry_run } => {
            let thrown = store.gc(*keep, *dry_run)?;
            if !dry_run {
                artifacts::prune(&settings.artifacts, &settings.cache);
            }
            report::thrown(&thrown, *dry_run, common.json);
        }
        CacheVerb::Rebuild => report::say(&format!("the index knows {} stages", Index::anew(&store)?)),
    }
    Ok(ExitCode::SUCCESS)
}
