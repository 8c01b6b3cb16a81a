//! `artifacts/<pipeline>/`: links into the store for users, one for each stage's artifact, log and metrics, and the summary of the
//! last run. Everything here can be deleted: the next run creates it again.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use imp_stages::contract::job::{EVENTS, LOG, METRICS};
use serde::Serialize;

use crate::{
    pipeline::{Pipeline, StageDecl},
    store::{Digest, Hit, Receipt, Store},
};

/// The folder of one pipeline's links.
#[derive(Debug)]
pub(crate) struct Artifacts {
    folder: PathBuf,
}

impl Artifacts {
    pub(crate) fn new(root: &Path, pipeline: &str) -> Self {
        Self { folder: root.join(pipeline) }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// The path of the link to a stage's artifact. For a stage that several points share, that of the first point.
    pub(crate) fn of(&self, pipeline: &Pipeline, stage: &StageDecl) -> PathBuf {
        let (point, name) = &stage.owners[0];
        self.folder.join(&pipeline.points[*point].label).join(name)
    }

    /// The links of a stage, as [`Self::of`], that lead to the artifact, log and metrics of this result.
    pub(crate) fn links_of(
        &self,
        pipeline: &Pipeline,
        stage: &StageDecl,
        result: &Receipt,
        store: &Store,
    ) -> Vec<PathBuf> {
        let link = self.of(pipeline, stage);
        let beside = |ending: &str| link.with_file_name(format!("{}.{ending}", stage.owners[0].1));
        let object = |digest: Option<Digest>| digest.map(|digest| store.object(digest));
        let all = [
            (link.clone(), Some(store.tree_path(result.output.digest))),
            (beside(LOG), object(result.log)),
            (beside(METRICS), object(result.metrics)),
        ];
        let right = all.into_iter().filter(|(link, target)| fs::read_link(link).ok() == *target && target.is_some());
        right.map(|(link, _)| link).collect()
    }

    /// Links the artifact, log and metrics of a stage. Takes two file operations if the links are already right.
    pub(crate) fn link(&self, point: &str, stage: &str, hit: &Hit, tree: &Path, store: &Store) -> io::Result<()> {
        let folder = self.folder.join(point);
        let link_object = |digest: Option<Digest>, ending: &str| {
            let link = folder.join(format!("{stage}.{ending}"));
            match digest {
                Some(digest) => replace_link(&store.object(digest), &link),
                None => remove(&link).map(|()| false),
            }
        };
        let new_tree = replace_link(tree, &folder.join(stage))?;
        // Compare the logs, too: a stage that ran again may have produced the same tree with different metrics.
        let new_log = link_object(hit.log, LOG)?;
        if new_tree || new_log {
            link_object(hit.metrics, METRICS)?;
            link_object(hit.events, &format!("tensorboard/{EVENTS}"))?;
        }
        Ok(())
    }

    /// Whether there is a summary of the last run.
    pub(crate) fn has_record(&self) -> bool {
        self.folder.join("run.json").is_file()
    }

    /// Writes the summary of a run.
    pub(crate) fn record(&self, summary: &impl Serialize) -> io::Result<()> {
        write_file(&self.folder.join("run.json"), &serde_json::to_vec_pretty(summary)?, 0o666)
    }

    /// What a run without a terminal says.
    pub(crate) fn run_log(&self) -> PathBuf {
        self.folder.join("run.log")
    }

    /// The path of the report of the last run.
    pub(crate) fn page(&self) -> PathBuf {
        self.folder.join("report.html")
    }
}

/// Writes a file, completely or not at all, and its folder if that does not exist. The umask takes from the permissions `mode`.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Removes the links below `root` whose targets below `cache` were deleted.
pub(crate) fn prune(root: &Path, cache: &Path) {
    let Ok(cache) = cache.canonicalize() else { return };
    let entries = walkdir::WalkDir::new(root).min_depth(2).into_iter().flatten();
    let points_into_cache = |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with(&cache));
    for link in entries.filter(|entry| points_into_cache(entry.path()) && !entry.path().exists()) {
        // A link that can't be removed does no harm: the next run corrects it.
        let _ = fs::remove_file(link.path());
    }
}

/// Makes `link` point to `target`. Returns whether it changed.
fn replace_link(target: &Path, link: &Path) -> io::Result<bool> {
    if fs::read_link(link).is_ok_and(|now| now == target) {
        return Ok(false);
    }
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    remove(link)?;
    match std::os::unix::fs::symlink(target, link) {
        // Another run has created it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        result => result.map(|()| true),
    }
}

/// Removes a link, if it exists. Refuses to remove anything that is not a link.
fn remove(link: &Path) -> io::Result<()> {
    match link.symlink_metadata() {
        Ok(found) if found.is_symlink() => match fs::remove_file(link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Ok(_) => Err(io::Error::other(format!(
            "{} is not a link made by imp-flow: move it to a different folder",
            link.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
