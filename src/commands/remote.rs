//! `imp-flow pull`, and the verbs of `imp-flow cache` on a remote cache.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::session::{Session, existing_store, store, usage};
use crate::{
    cli::{Common, OfArgs, StageArgs},
    failure::Failure,
    pipeline::Diagnostic,
    remote::{Keep, Meter, Pulled, Pushed, Remote, Trouble, Want},
    report::{self, Bar, RemotePull, RemotePush},
    scheduler::{Names, Verdict},
    settings::Settings,
    store::{Digest, Hit, Store},
};

/// Takes the result of a stage from the remote cache, without running anything. What it was made from is not taken.
pub(crate) fn pull(args: &StageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    let remote = session.remote.clone().ok_or_else(no_remote)?;
    let name = session.pipeline.stages[index].name.clone();
    let until = [name.clone()];
    let selection = session.select(&Names { until: &until, ..Names::default() })?;
    let verdicts = session.planner_with_remote().plan(&selection)?;
    let verdict = verdicts.into_iter().find(|(at, _)| *at == index).map(|(_, verdict)| verdict);
    let key = match verdict {
        Some(Verdict::Hit { key }) => {
            link(&session, index, key)?;
            report::pulled_stage(
                &name,
                None,
                &session.artifacts.of(&session.pipeline, &session.pipeline.stages[index]),
                common.style(),
            );
            return Ok(ExitCode::SUCCESS);
        }
        Some(Verdict::Remote { key, manifest, .. }) => {
            let mut lease = session.store.lease(&format!("pull-{}", std::process::id()))?;
            lease.add(&[key], &[])?;
            let want = Want { key, manifest: Some(&manifest) };
            let pulled = with_bar("pulling", common, |meter| remote.pull(&session.store, want, meter, &|_| ()));
            match pulled.map_err(|trouble| failure(&remote, trouble))? {
                Pulled::Taken { bytes, objects } => {
                    link(&session, index, key)?;
                    let link = session.artifacts.of(&session.pipeline, &session.pipeline.stages[index]);
                    report::pulled_stage(&name, Some((bytes, objects)), &link, common.style());
                    return Ok(ExitCode::SUCCESS);
                }
                Pulled::Absent => Some(key),
            }
        }
        Some(Verdict::Run { key, .. }) => Some(key),
        Some(Verdict::After { .. }) | None => None,
    };
    let message = match key {
        Some(_) => format!(
            "the remote cache {} does not have the result of `{name}` with its present configuration",
            remote.address()
        ),
        None => format!(
            "neither cache has what `{name}` is made from, so its result can't be found in the remote cache {}",
            remote.address()
        ),
    };
    Err(usage(
        Diagnostic::new(message, None).help("run the pipeline; `imp-flow plan` shows what is there, and what changed"),
    ))
}

/// Links a result that is in the store, as a run does.
fn link(session: &Session, index: usize, key: Digest) -> Result<(), Failure> {
    let Some(receipt) = session.store.receipt(key)? else { return Ok(()) };
    let hit = Hit::from(receipt);
    let Some(folder) = session.store.tree_folder(hit.output.digest)?.into_parts().0 else { return Ok(()) };
    for (point, name) in &session.pipeline.stages[index].owners {
        session.index.set_last(&session.pipeline.id(*point), name, key);
        let label = &session.pipeline.points[*point].label;
        let linked = session.artifacts.link(label, name, &hit, &folder, &session.store);
        linked.map_err(|source| Failure::Io { what: format!("can't link the artifact of `{name}`"), source })?;
    }
    Ok(())
}

/// Takes everything that the remote cache has and this one lacks.
pub(super) fn pull_all(of: &OfArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (settings, store) = store(common)?;
    let remote = open(&settings)?;
    let mut lease = store.lease(&format!("pull-{}", std::process::id()))?;
    let keys = remote.keys().map_err(|trouble| failure(&remote, trouble))?;
    let (mut told, mut wanted) = (RemotePull::default(), 0);
    with_bar("pulling", common, |meter| {
        for key in keys {
            if let Some(receipt) = store.receipt(key)? {
                let is_wanted = is_of(of, &receipt.pipeline);
                (told.known, wanted) = (told.known + usize::from(is_wanted), wanted + usize::from(is_wanted));
                continue;
            }
            lease.add(&[key], &[])?;
            if !is_wanted(&remote, key, of)? {
                continue;
            }
            wanted += 1;
            match remote.pull(&store, Want { key, manifest: None }, meter, &|_| ()) {
                Ok(Pulled::Taken { bytes, .. }) => {
                    told.pulled += 1;
                    told.bytes += bytes;
                }
                // It was deleted meanwhile.
                Ok(Pulled::Absent) => {}
                Err(Trouble::Result(what)) => told.unusable.push((key.short(), what)),
                Err(trouble) => return Err(failure(&remote, trouble)),
            }
        }
        Ok(())
    })?;
    if let Some(name) = of.of.as_ref().filter(|_| wanted == 0) {
        let message = format!("the remote cache {} has no results of a pipeline `{name}`", remote.address());
        return Err(usage(Diagnostic::new(message, None).help("`imp-flow cache stats --remote` shows what it has")));
    }
    report::pulled_all(&remote.address(), &told, common.style());
    Ok(if told.unusable.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Whether a pipeline or a point of it, by its identifier, is the one that is asked for.
fn is_of(of: &OfArgs, pipeline: &str) -> bool {
    of.of.as_ref().is_none_or(|name| pipeline.split('/').next() == Some(name))
}

/// Whether a result is one of the pipeline that is asked for. What can't be read is asked for, and then said.
fn is_wanted(remote: &Remote, key: Digest, of: &OfArgs) -> Result<bool, Failure> {
    if of.of.is_none() {
        return Ok(true);
    }
    match remote.receipt(key, None) {
        Ok(receipt) => Ok(receipt.is_some_and(|receipt| is_of(of, &receipt.pipeline))),
        Err(Trouble::Result(_)) => Ok(false),
        Err(trouble) => Err(failure(remote, trouble)),
    }
}

/// Sends everything that this cache has and the remote one lacks.
pub(super) fn push_all(of: &OfArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (settings, store) = existing_store(common)?;
    let remote = open_to_write(&settings)?;
    let mut lease = store.lease(&format!("push-{}", std::process::id()))?;
    let results: Vec<_> = store.receipts().filter(|(_, receipt)| is_of(of, &receipt.pipeline)).collect();
    if let Some(name) = of.of.as_ref().filter(|_| results.is_empty()) {
        let known: BTreeSet<String> =
            store.receipts().filter_map(|(_, receipt)| Some(receipt.pipeline.split('/').next()?.to_string())).collect();
        let problem = Diagnostic::new(format!("this cache has no results of a pipeline `{name}`"), None);
        return Err(usage(problem.suggest(name, known.iter().map(String::as_str))));
    }
    lease.add(&results.iter().map(|(key, _)| *key).collect::<Vec<_>>(), &[])?;
    let mut told = RemotePush::default();
    with_bar("pushing", common, |meter| {
        for (key, receipt) in &results {
            match remote.push(&store, *key, true, meter).map_err(|trouble| failure(&remote, trouble))? {
                Pushed::Sent { bytes } => {
                    told.pushed += 1;
                    told.bytes += bytes;
                }
                Pushed::Known => told.known += 1,
                Pushed::Unfit => told.unfit.push(format!("{}/{}", receipt.pipeline, receipt.stage)),
                Pushed::Later => return Err(busy(&remote)),
            }
            store.forget_unsent(*key);
        }
        Ok(())
    })?;
    report::pushed_all(&remote.address(), &told, common.style());
    Ok(ExitCode::SUCCESS)
}

/// Shows what is in the remote cache.
pub(super) fn stats(settings: &Settings, common: &Common) -> Result<(), Failure> {
    let remote = open(settings)?;
    let stats = remote.stats().map_err(|trouble| failure(&remote, trouble))?;
    report::remote_stats(&stats, common.json);
    Ok(())
}

/// Deletes what no recent run used from the remote cache.
pub(super) fn gc(
    settings: &Settings,
    store: &Store,
    keep: Keep,
    dry_run: bool,
    common: &Common,
) -> Result<(), Failure> {
    let remote = if dry_run { open(settings) } else { open_to_write(settings) }?;
    let collected = remote.gc(store, keep, dry_run).map_err(|trouble| failure(&remote, trouble))?;
    report::remote_gc(&remote.address(), &collected, dry_run, common.json);
    Ok(())
}

fn no_remote() -> Failure {
    Failure::Settings(
        "there is no remote cache\n  help: name one in imp-flow.toml, as in `remote = \"s3://bucket/prefix\"`, or in \
         IMP_FLOW_REMOTE"
            .into(),
    )
}

fn open(settings: &Settings) -> Result<Remote, Failure> {
    settings.remote.as_ref().map(Remote::new).ok_or_else(no_remote)
}

fn open_to_write(settings: &Settings) -> Result<Remote, Failure> {
    let remote = open(settings)?;
    if remote.is_writable() {
        return Ok(remote);
    }
    let message =
        format!("the remote cache {} is only read: `remote_access` in imp-flow.toml says so", remote.address());
    Err(Failure::Settings(message))
}

fn busy(remote: &Remote) -> Failure {
    let trouble = Trouble::Place("garbage is being collected there: try again in some minutes".into());
    failure(remote, trouble)
}

fn failure(remote: &Remote, trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Here(error) => error.into(),
        trouble => Failure::Remote { address: remote.address(), what: trouble.to_string() },
    }
}

/// Shows how far a transfer is while `work` runs.
fn with_bar<T>(what: &'static str, common: &Common, work: impl FnOnce(&Meter) -> T) -> T {
    let (meter, ended, bar) = (Meter::default(), Arc::new(AtomicBool::new(false)), Bar::bytes(what, common.style()));
    thread::scope(|scope| {
        let (shown, over) = (meter.clone(), ended.clone());
        scope.spawn(move || {
            while !over.load(Relaxed) {
                let (done, total) = shown.read();
                bar.at(done.min(total), total);
                thread::sleep(Duration::from_millis(100));
            }
            bar.clear();
        });
        let _end = End(&ended);
        work(&meter)
    })
}

/// Ends the bar, also if the work panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
