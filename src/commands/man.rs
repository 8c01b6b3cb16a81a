//! `imp-flow man`: the man pages, from the definition of the command line.

use std::{path::Path, process::ExitCode};

use clap::CommandFactory;

use crate::{cli::Cli, failure::Failure, report};

/// Writes a page for the program and for each verb.
pub(crate) fn man(folder: &Path) -> Result<ExitCode, Failure> {
    let failed = |source| Failure::Io { what: format!("can't write man pages into {}", folder.display()), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    // Renamed into place: a link that has the name of a page is replaced, and not what it leads to.
    let fresh = tempfile::tempdir_in(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), fresh.path()).map_err(failed)?;
    for page in std::fs::read_dir(fresh.path()).map_err(failed)? {
        let page = page.map_err(failed)?;
        std::fs::rename(page.path(), folder.join(page.file_name())).map_err(failed)?;
    }
    report::print(&format!("Wrote the man pages into {}", folder.display()));
    Ok(ExitCode::SUCCESS)
}
