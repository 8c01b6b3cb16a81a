//! The command line of the verbs about the cache, here and remote.

use clap::{Args, Subcommand};

/// Which results are exchanged with a remote cache.
#[derive(Debug, Args)]
pub(crate) struct OfArgs {
    /// Only those that were made for this pipeline
    #[arg(long, value_name = "PIPELINE")]
    pub(crate) of: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheVerb {
    /// Show the size of the cache by pipeline
    #[command(after_help = "\
Examples:
  imp-flow cache stats
  imp-flow cache stats --remote      what is in the remote cache")]
    Stats {
        /// Of the remote cache
        #[arg(long)]
        remote: bool,
    },
    /// Push all results that the remote cache lacks
    #[command(after_help = "\
Examples:
  imp-flow cache push                all that is in this cache
  imp-flow cache push --of tiny      what was made for one pipeline

A run pushes what it makes by itself: docs/REMOTE.md. This is for what was made before.")]
    Push(OfArgs),
    /// Pull all results that this cache lacks
    #[command(after_help = "\
Examples:
  imp-flow cache pull --of tiny      what was made for one pipeline
  imp-flow pull merge                the result of one stage

A run pulls what it needs by itself: docs/REMOTE.md. This is for machines that will have no network.")]
    Pull(OfArgs),
    /// Check all files for damage and remove damaged ones; the next run makes them again
    Verify,
    /// Delete results that no recent or named run uses
    #[command(after_help = "\
Examples:
  imp-flow cache gc --dry-run
  imp-flow cache gc --keep 3
  imp-flow cache gc --remote --keep 10 --days 30      in the remote cache, for all who share it

In the remote cache, what was pushed or used within the last --days stays in any case, and one machine at a time deletes.")]
    Gc {
        /// Keep what the last N runs of each pipeline use
        #[arg(long, value_name = "N", default_value_t = 5)]
        keep: usize,
        /// Only show what would be deleted
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// In the remote cache
        #[arg(long)]
        remote: bool,
        /// In the remote cache, keep what was pushed or used within the last N days
        #[arg(long, value_name = "N", default_value_t = 7, requires = "remote", value_parser = clap::value_parser!(u64).range(1..))]
        days: u64,
    },
    /// Rebuild the index from the receipts
    Rebuild,
}
