//! What verbs need to work on a pipeline: the settings, the pipeline, its graph and the store.

use std::{cell::OnceCell, collections::BTreeSet, path::PathBuf, sync::Arc};

use imp_stages::{contract::device::DeviceChoice, place::probe};

use super::gpus;
use crate::{
    artifacts::Artifacts,
    cli::{Common, Overrides, PipelineArgs, ResultArgs, StageArgs, TargetArgs, USUAL_FILE},
    executor,
    failure::Failure,
    machine::Machine,
    pipeline::{COMMAND_LINE, Diagnostic, Diagnostics, Document, Graph, Pipeline, Sources},
    remote::Remote,
    report,
    scheduler::{Names, Planner, Selection, Verdict},
    settings::Settings,
    store::{Digest, Index, Receipt, RunRecord, Scope, Store, look_up},
};

/// The requested pipeline file, its changes, and whether it is run as a sweep.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) file: PathBuf,
    pub(super) overrides: Vec<String>,
    pub(super) sweep: bool,
    /// Where all stages compute, if the user says it.
    pub(super) device: Option<DeviceChoice>,
}

/// Everything that a verb on a pipeline needs.
pub(super) struct Session {
    pub(super) settings: Settings,
    pub(super) request: Request,
    pub(super) document: Document,
    pub(super) pipeline: Pipeline,
    pub(super) graph: Graph,
    pub(super) store: Store,
    pub(super) index: Index,
    pub(super) artifacts: Artifacts,
    /// The cache that other machines share, if there is one.
    pub(super) remote: Option<Arc<Remote>>,
    sources: Sources,
    machine: OnceCell<Machine>,
}

/// The machine's settings.
pub(super) fn settings(common: &Common) -> Result<Settings, Failure> {
    Settings::load(common.cache.clone(), common.artifacts.clone()).map_err(Failure::Settings)
}

/// The most names that a message lists.
const LISTED: usize = 10;

/// The settings, and the store that they name.
pub(super) fn store(common: &Common) -> Result<(Settings, Store), Failure> {
    let settings = settings(common)?;
    let store = Store::open(&settings.cache)?;
    Ok((settings, store))
}

/// Like [`store`], for verbs that only read: they don't create a cache.
pub(super) fn existing_store(common: &Common) -> Result<(Settings, Store), Failure> {
    let settings = settings(common)?;
    if look_up(&settings.cache.join("VERSION")).is_err() {
        let here = std::env::current_dir().ok().filter(|_| settings.cache.is_relative());
        let looked = here.map(|folder| format!(" (looked in {})", folder.display())).unwrap_or_default();
        let problem = Diagnostic::new(format!("no runs in the cache `{}`{looked}", settings.cache.display()), None);
        return Err(usage(
            problem.help(
                "run a pipeline first, change to the folder that holds the cache, or name the cache with --cache",
            ),
        ));
    }
    let store = Store::open(&settings.cache)?;
    Ok((settings, store))
}

/// The current run, else the last one.
fn last_run(common: &Common) -> Result<RunRecord, Failure> {
    let (_, store) = existing_store(common)?;
    find_run(&store, None)
}

/// The error of a verb that was given no pipeline file and finds none.
pub(super) fn no_file() -> Failure {
    let problem = Diagnostic::new(format!("there is no {USUAL_FILE} in this folder"), None);
    usage(problem.help("name a pipeline file, as in `imp-flow run my.toml`, or write one with `imp-flow init`"))
}

/// An error on the command line.
pub(super) fn usage(problem: Diagnostic) -> Failure {
    Failure::Usage { problems: vec![problem], sources: Sources::default() }
}

impl Session {
    /// Opens a pipeline file.
    pub(super) fn open(request: Request, common: &Common) -> Result<Self, Failure> {
        let mut sources = Sources::default();
        match read(&request, &mut sources) {
            Ok(document) => Self::of_document(document, request, sources, common),
            Err(problems) => Err(Failure::Usage { problems, sources }),
        }
    }

    /// Opens the pipeline of a past run from its record.
    pub(super) fn of_run(run: RunRecord, device: Option<DeviceChoice>, common: &Common) -> Result<Self, Failure> {
        let mut sources = Sources::default();
        sources.originals = run.sources;
        let path = PathBuf::from(format!("run {}", run.id));
        let request = Request { file: run.file, overrides: run.overrides, sweep: run.sweep, device };
        match Document::of_text(run.document, path, &mut sources) {
            Ok(document) => Self::of_document(document, request, sources, common),
            Err(problems) => Err(Failure::Usage { problems, sources }),
        }
    }

    /// Opens the given pipeline. By default, opens that of the current run as it was started, else that of the last run from its
    /// present file.
    pub(super) fn of_target(target: &TargetArgs, common: &Common) -> Result<Self, Failure> {
        if let Some(file) = &target.file {
            let request =
                Request { file: file.clone(), overrides: target.set.overrides.clone(), sweep: false, device: None };
            return Self::open(request, common);
        }
        Self::of_last(last_run(common)?, &target.set, None, common)
    }

    /// Opens the pipeline file of a verb that needs no run before it: the named one, else the one in this folder, else as
    /// [`Self::of_target`].
    pub(super) fn of_file(args: &PipelineArgs, device: Option<DeviceChoice>, common: &Common) -> Result<Self, Failure> {
        let usual = || Some(PathBuf::from(USUAL_FILE)).filter(|file| file.exists());
        if let Some(file) = args.file.clone().or_else(usual) {
            let request = Request { file, overrides: args.set.overrides.clone(), sweep: false, device };
            return Self::open(request, common);
        }
        match last_run(common) {
            Ok(run) => Self::of_last(run, &args.set, device, common),
            // No cache, or no run in it.
            Err(Failure::Usage { .. }) => Err(no_file()),
            Err(other) => Err(other),
        }
    }

    fn of_last(
        run: RunRecord,
        set: &Overrides,
        device: Option<DeviceChoice>,
        common: &Common,
    ) -> Result<Self, Failure> {
        if run.is_running() && set.overrides.is_empty() {
            return Self::of_run(run, device, common);
        }
        let overrides = [run.overrides.clone(), set.overrides.clone()].concat();
        match Self::open(Request { file: run.file.clone(), overrides, sweep: run.sweep, device }, common) {
            // The file is being edited or is gone: use the record of the run.
            Err(now @ Failure::Usage { .. }) if set.overrides.is_empty() => {
                let (file, id) = (run.file.clone(), run.id.clone());
                match Self::of_run(run, device, common) {
                    // What the file names is gone for its record, too.
                    Err(Failure::Usage { .. }) => Err(now),
                    opened => {
                        let text =
                            format!("note: {} has a mistake now; showing the pipeline of run {id}", file.display());
                        report::note(&text, common.style());
                        opened
                    }
                }
            }
            opened => opened,
        }
    }

    /// Opens the pipeline of a verb on one stage, and finds the stage in it.
    pub(super) fn of_stage(args: &StageArgs, common: &Common) -> Result<(Self, usize), Failure> {
        let session = Self::of_target(&args.target, common)?;
        let name = args.point.as_ref().map_or_else(|| args.stage.clone(), |point| format!("{point}/{}", args.stage));
        let found: Vec<usize> = session.pipeline.named(&name).collect();
        match found.as_slice() {
            [index] => Ok((session, *index)),
            [] => {
                let points = session.pipeline.points.iter().map(|point| point.label.as_str());
                if let Some(point) = &args.point
                    && !points.clone().any(|label| label == point)
                {
                    let problem = Diagnostic::new(format!("there is no point `{point}`"), None);
                    return Err(usage(problem.suggest(point, points.take(LISTED))));
                }
                let known: BTreeSet<&str> =
                    session.pipeline.stages.iter().map(|stage| stage.owners[0].1.as_str()).collect();
                let file = session.request.file.display();
                let problem = Diagnostic::new(format!("there is no stage `{}` in {file}", args.stage), None);
                Err(usage(problem.suggest(&args.stage, known)))
            }
            several => {
                let of =
                    |index: &usize| session.pipeline.points[session.pipeline.stages[*index].owners[0].0].label.as_str();
                let points: Vec<&str> = several.iter().map(of).take(LISTED).collect();
                let problem = Diagnostic::new(format!("`{name}` is a stage of {} points", several.len()), None);
                Err(usage(problem.help(format!("choose one: --point {}", points.join(", or --point ")))))
            }
        }
    }

    /// Opens the pipeline of a verb on the result of a stage, and finds its receipt: that of its present configuration, or with
    /// `last` the last one.
    pub(super) fn of_result(args: &ResultArgs, common: &Common) -> Result<(Self, usize, Receipt), Failure> {
        let (session, index) = Self::of_stage(&args.stage, common)?;
        let verdict = session.verdict(index)?;
        let name = &session.pipeline.stages[index].name;
        let receipt = session.receipt(index, &verdict)?.ok_or_else(|| never_ran(name))?;
        if !args.last && !matches!(verdict, Verdict::Hit { .. }) {
            let problem = Diagnostic::new(format!("stage `{name}` has not run with its present configuration"), None);
            return Err(usage(problem.help("run the pipeline, or take its last result with --last")));
        }
        Ok((session, index, receipt))
    }

    fn of_document(document: Document, request: Request, sources: Sources, common: &Common) -> Result<Self, Failure> {
        let opened = if request.sweep { document.sweep(&sources) } else { document.pipeline(&sources) };
        let opened = opened.and_then(|pipeline| match Graph::new(&pipeline) {
            Ok(graph) => Ok((pipeline, graph)),
            Err(cycle) => Err(vec![cycle]),
        });
        let (pipeline, graph) = match opened {
            Ok(opened) => opened,
            Err(problems) => return Err(Failure::Usage { problems, sources }),
        };
        let (settings, store) = store(common)?;
        let scope = Scope {
            pipelines: (0..pipeline.points.len())
                .map(|point| pipeline.id(point))
                .chain([pipeline.name.clone()])
                .collect(),
            sources: pipeline.stages.iter().flat_map(|stage| stage.sources.values()).map(PathBuf::as_path).collect(),
        };
        let index = Index::open(&store, &scope);
        let artifacts = Artifacts::new(&settings.artifacts, &pipeline.name);
        let remote = settings.remote.as_ref().map(|settings| Arc::new(Remote::new(settings)));
        let machine = OnceCell::new();
        Ok(Self { settings, request, document, pipeline, graph, store, index, artifacts, remote, sources, machine })
    }

    /// The files that were read, with the digests of their contents.
    pub(super) fn texts(&self) -> Vec<(PathBuf, Digest)> {
        let files = self.sources.all().filter(|(path, _)| path.as_os_str() != COMMAND_LINE);
        files.map(|(path, text)| (path.clone(), Digest::of(text.as_bytes()))).collect()
    }

    /// The machine, with the device that the user chose. Looks for GPUs if a stage asks for one.
    pub(super) fn machine(&self) -> &Machine {
        self.machine.get_or_init(|| {
            let mut machine = self.settings.machine.clone();
            machine.device.all = self.request.device;
            let stages = &self.pipeline.stages;
            if stages.iter().any(|stage| machine.runs_here(stage) && machine.gpus_asked(stage) > 0) {
                gpus::look_here(&mut machine, &probe());
            }
            if !stages.iter().all(|stage| machine.runs_here(stage)) {
                machine.elsewhere.unusable = executor::usable(&self.settings.cache).err();
            }
            machine
        })
    }

    pub(super) fn planner(&self) -> Planner<'_> {
        Planner { pipeline: &self.pipeline, graph: &self.graph, store: &self.store, index: &self.index, remote: None }
    }

    /// A planner that asks the remote cache, too, if there is one.
    pub(super) fn planner_with_remote(&self) -> Planner<'_> {
        Planner { remote: self.remote.as_deref(), ..self.planner() }
    }

    pub(super) fn select(&self, names: &Names<'_>) -> Result<Selection, Failure> {
        Selection::new(names, &self.pipeline, &self.graph).map_err(usage)
    }

    /// The verdict on one stage.
    pub(super) fn verdict(&self, index: usize) -> Result<Verdict, Failure> {
        let verdicts = self.planner().plan(&Selection::everything(&self.pipeline))?;
        let found = verdicts.into_iter().find(|(at, _)| *at == index).map(|(_, verdict)| verdict);
        Ok(found.unwrap_or(Verdict::After { stages: Vec::new(), changes: Vec::new() }))
    }

    /// The receipt of a stage with its present configuration, else its last receipt.
    pub(super) fn receipt(&self, index: usize, verdict: &Verdict) -> Result<Option<Receipt>, Failure> {
        match verdict {
            Verdict::Hit { key } => Ok(self.store.receipt(*key)?),
            _ => Ok(self.planner().last_receipt(index)?),
        }
    }

    /// The failure for problems with the pipeline.
    pub(super) fn refuse(self, problems: Diagnostics) -> Failure {
        Failure::Usage { problems, sources: self.sources }
    }
}

/// The error for a stage that has never finished.
pub(super) fn never_ran(stage: &str) -> Failure {
    usage(
        Diagnostic::new(format!("stage `{stage}` has no result yet"), None)
            .help("`imp-flow why` shows what it waits for"),
    )
}

fn read(request: &Request, sources: &mut Sources) -> Result<Document, Diagnostics> {
    if !request.sweep {
        return Document::read(&request.file, &request.overrides, sources);
    }
    let mut document = Document::read(&request.file, &[], sources)?;
    for text in &request.overrides {
        document.sweep_over(text, sources)?;
    }
    Ok(document)
}

/// The run with this id or name; `None` stands for the last run.
pub(super) fn find_run(store: &Store, name: Option<&str>) -> Result<RunRecord, Failure> {
    let runs = store.runs()?;
    let Some(name) = name else {
        return runs.into_iter().next().ok_or_else(|| {
            usage(
                Diagnostic::new("nothing has run yet", None).help("run a pipeline first, or name one with --pipeline"),
            )
        });
    };
    let known: Vec<String> = runs.iter().map(|run| run.name.clone().unwrap_or_else(|| run.id.clone())).collect();
    runs.into_iter().find(|run| run.id == name || run.name.as_deref() == Some(name)).ok_or_else(|| {
        let problem = Diagnostic::new(format!("there is no run `{name}`"), None);
        usage(problem.help("`imp-flow runs` lists them").suggest(name, known.iter().map(String::as_str).take(LISTED)))
    })
}
