//! `imp-flow run` and `imp-flow sweep`.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use super::{
    detach, fast_path,
    on_end::{Ended, on_end},
    page, plan,
    record::Recorder,
    report::{filled_tables, model_rows},
    session::{Request, Session, existing_store, find_run, no_file, settings},
};
use crate::{
    cli::{Common, RunArgs, SelectArgs, USUAL_FILE},
    executor::Executors,
    failure::Failure,
    report,
    scheduler::{self, Ending, Options, Retry, RunEvent, Selection, StageEnd, Summary},
    store::{Digest, RunRecord},
};

/// Runs a pipeline, or all points of a sweep.
pub(crate) fn run(args: &RunArgs, sweep: bool, common: &Common) -> Result<ExitCode, Failure> {
    if args.detach.detached {
        detach::leave_terminal();
    }
    let mut repeated = None;
    let device = args.place.device;
    let file = match &args.file {
        None if args.from_run.is_none() => Some(usual_file()?),
        file => file.clone(),
    };
    let session = match (&file, &args.from_run) {
        (Some(file), _) => {
            let request = Request { file: file.clone(), overrides: args.set.overrides.clone(), sweep, device };
            if args.is_plain()
                && !common.json
                && let Some(summary) = fast_path::check(&request, &settings(common)?)
            {
                let mut reporter = report::for_run(common.style());
                for stage in &summary.stages {
                    for message in &stage.cautions {
                        reporter.on(&RunEvent::Warning { stage: &stage.name, message });
                    }
                }
                reporter.on(&RunEvent::Ended { summary: &summary });
                return Ok(ExitCode::SUCCESS);
            }
            Session::open(request, common)?
        }
        (None, id) => {
            let (_, store) = existing_store(common)?;
            let run = repeated.insert(find_run(&store, id.as_deref())?);
            Session::of_run(run.clone(), device, common)?
        }
    };
    let selection = session.select(&args.select.names())?;
    let problems = plan::problems(&session, &selection)?;
    if !problems.is_empty() {
        return Err(session.refuse(problems));
    }
    if args.dry_run {
        return plan::show(&session, &selection, common);
    }
    if args.detach.detach {
        return detach::start(&session, common);
    }
    if !session.request.sweep && session.document.is_swept() {
        report::note(
            "note: running the pipeline without its [sweep]; `imp-flow sweep` runs all points",
            common.style(),
        );
    }
    let summary = execute(&session, args, selection, common)?;
    if let Some(run) = repeated {
        report::differences(&run, &differences(&session, &summary, &run));
    }
    Ok(match summary.ending {
        Ending::Done => ExitCode::SUCCESS,
        Ending::Failed => ExitCode::from(1),
        Ending::Interrupted => ExitCode::from(130),
    })
}

/// The pipeline file of this folder.
fn usual_file() -> Result<PathBuf, Failure> {
    let file = PathBuf::from(USUAL_FILE);
    if file.exists() {
        return Ok(file);
    }
    Err(no_file())
}

/// The stages whose outputs differ from those of a past run.
fn differences<'s>(session: &Session, summary: &'s Summary, run: &RunRecord) -> Vec<&'s str> {
    let then: HashMap<(&str, &str), Digest> = run
        .points
        .iter()
        .flat_map(|point| point.stages.iter().map(move |stage| (point, stage)))
        .filter_map(|(point, stage)| Some(((point.label.as_str(), stage.name.as_str()), stage.output?.digest)))
        .collect();
    let differs = |end: &&StageEnd| {
        let now = end.output.map(|output| output.digest);
        let mut owners = session.pipeline.stages[end.index].owners.iter();
        owners.any(|(point, name)| {
            let label = session.pipeline.points[*point].label.as_str();
            now.is_some_and(|now| then.get(&(label, name.as_str())).is_some_and(|then| *then != now))
        })
    };
    summary.stages.iter().filter(differs).map(|end| end.name.as_str()).collect()
}

/// Runs the selected stages, and shows and records the run.
fn execute(session: &Session, args: &RunArgs, selection: Selection, common: &Common) -> Result<Summary, Failure> {
    let start = SystemTime::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Io { what: "can't start the scheduler".into(), source })?;
    let mut reporter = report::for_run(common.style());
    let mut recorder = Recorder::new(session, args.name.clone());
    // Until the record is written, only the lease protects what the run uses from garbage collection.
    let mut lease = session.store.lease(recorder.id())?;
    let options = Options {
        machine: session.machine().clone(),
        jobs: args.jobs,
        keep_going: args.keep_going,
        retry: Retry {
            times: session.settings.retries,
            pause: Duration::from_secs_f64(session.settings.retry_seconds),
        },
        environment: session.settings.environment.clone(),
        executors: Executors::new(&session.machine().elsewhere.cluster),
        remote: session.remote.clone(),
        selection,
        outlook: reporter.shows_outlook(),
    };
    let mut quit = false;
    let ended =
        runtime.block_on(scheduler::run(session.planner(), &session.artifacts, options, &mut lease, &mut |event| {
            quit |= matches!(event, RunEvent::Stopping { at_once: true });
            recorder.on(event);
            reporter.on(event);
        }));
    if let Some(record) = ended.as_ref().ok().and_then(|summary| recorder.finish(summary)) {
        page::after_run(session, &record, common);
    }
    drop(lease);
    // Whoever quits at once does not want to wait for anything.
    if let Some(command) = args.on_end.as_deref().filter(|_| !quit) {
        on_end(command, &ended_of(recorder.id(), ended.as_ref().ok()), session);
    }
    let summary = ended?;
    let tables = filled_tables(&session.pipeline);
    if summary.ending == Ending::Done && !common.quiet && !common.json {
        let results = |name: &str| summary.stages.iter().find(|stage| stage.name == name).map(|stage| &stage.results);
        for table in &tables {
            report::published(table, &model_rows(table, &session.pipeline, results), report::Format::Text);
        }
    }
    // The fast path shows no tables.
    if tables.is_empty() && args.is_plain() {
        fast_path::note(session, &summary, start);
    }
    Ok(summary)
}

/// What the command of `--on-end` is told.
fn ended_of(run: &str, summary: Option<&Summary>) -> Ended {
    let stages = summary.iter().flat_map(|summary| &summary.stages);
    Ended {
        ending: summary.map(|summary| summary.ending),
        run: run.into(),
        seconds: summary.map_or(0.0, |summary| summary.seconds),
        stages: stages.map(|stage| (stage.name.clone(), stage.state)).collect(),
    }
}

impl RunArgs {
    /// Whether all stages are selected, and no other option is set.
    fn is_plain(&self) -> bool {
        let SelectArgs { only, until, from, force } = &self.select;
        let all = [only, until, from, force].iter().all(|names| names.is_empty());
        all && !self.dry_run && self.name.is_none() && self.from_run.is_none() && self.on_end.is_none()
    }
}
