//! Every transition of a stage, without processes or a store.

#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    convert::Infallible,
};

use super::*;
use crate::{
    pipeline::{self, Pipeline, Sources},
    scheduler::Names,
    store::TreeRef,
};

/// `a -> b -> d` and `a -> c -> d`.
const DIAMOND: &str = r#"
stages.a = { kind = "synthetic", text = "a" }
stages.b = { kind = "synthetic", text = "b", after = "a" }
stages.c = { kind = "synthetic", text = "c", after = "a" }
stages.d = { kind = "synthetic", text = "d", after = ["b", "c"] }
"#;

/// `a` and `b` have the same key, and each has a user.
const TWINS: &str = r#"
stages.a = { kind = "synthetic", text = "same" }
stages.b = { kind = "synthetic", text = "same" }
stages.c = { kind = "synthetic", text = "c", after = "a" }
stages.d = { kind = "synthetic", text = "d", after = "b" }
"#;

/// `b` and `c` have the same key if the outputs of `a` and `f` are the same.
const LATE_TWINS: &str = r#"
stages.a = { kind = "synthetic", text = "a" }
stages.b = { kind = "synthetic", text = "same", after = "a" }
stages.c = { kind = "synthetic", text = "same", after = "f" }
stages.d = { kind = "synthetic", text = "d", after = "b" }
stages.e = { kind = "synthetic", text = "e", after = "c" }
stages.f = { kind = "synthetic", text = "f" }
"#;

/// A pipeline, the selected stages, and a store in memory.
struct World {
    pipeline: Pipeline,
    graph: Graph,
    selection: Selection,
    cache: RefCell<HashMap<Digest, Digest>>,
    /// The content of the user's files, which is part of every key.
    source: Cell<&'static str>,
}

impl World {
    fn new(text: &str) -> Self {
        Self::selecting(text, &[], &[])
    }

    fn selecting(text: &str, only: &[&str], force: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        let pipeline = pipeline::load(&file, &[], &mut Sources::default()).unwrap();
        let graph = Graph::new(&pipeline).unwrap();
        let [only, force] = [only, force].map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let names = Names { only: &only, force: &force, ..Names::default() };
        let selection = Selection::new(&names, &pipeline, &graph).map_err(|problem| problem.message).unwrap();
        Self { pipeline, graph, selection, cache: RefCell::default(), source: Cell::new("") }
    }

    fn look_up(&self, stage: usize, outputs: &[Option<Digest>]) -> Option<Lookup> {
        let decl = &self.pipeline.stages[stage];
        let mut inputs = BTreeMap::new();
        for (name, from) in &decl.inputs {
            inputs.insert(name.clone(), outputs[*from]?);
        }
        let sources = BTreeMap::from([("source".to_string(), Digest::of(self.source.get().as_bytes()))]);
        let (kind, config) = (decl.kind.to_string(), decl.config.clone());
        let manifest = Manifest { kind, version: 1, seed: 0, config, sources, inputs };
        let key = manifest.key();
        let found = match self.cache.borrow().get(&key) {
            _ if self.selection.forces(stage) => Found::Miss(MissReason::Forced),
            Some(output) => Found::Hit(hit(key, *output), PathBuf::new()),
            None => Found::Miss(MissReason::New),
        };
        Some(Lookup { key, manifest, found, mended: None })
    }

    fn board(&self) -> Board<'_> {
        Board::new(&self.graph, &self.selection, false)
    }

    /// Settles all stages of a new board.
    fn resolved(&self) -> (Board<'_>, Vec<String>) {
        let mut board = self.board();
        let effects = self.resolve(&mut board, self.graph.order().to_vec());
        (board, effects)
    }

    fn resolve(&self, board: &mut Board<'_>, stages: Vec<usize>) -> Vec<String> {
        let effects = board.resolve(stages, |stage, outputs| Ok::<_, Infallible>(self.look_up(stage, outputs)));
        self.words(&effects.unwrap())
    }

    /// Starts a stage and ends it with this output. Returns the effects on other stages.
    fn run(&self, board: &mut Board<'_>, name: &str, output: &str) -> Vec<String> {
        let stage = index(name);
        let key = board.start(stage).unwrap().manifest.key();
        let output = Digest::of(output.as_bytes());
        self.cache.borrow_mut().insert(key, output);
        let done = Done { hit: hit(key, output), folder: PathBuf::new(), ran: true };
        let next = board.finished(stage, done);
        self.resolve(board, next)
    }

    /// `b done`, `c skipped for a`.
    fn words(&self, effects: &[Effect]) -> Vec<String> {
        let name = |stage: usize| &self.pipeline.stages[stage].name;
        let word = |effect: &Effect| match *effect {
            Effect::Done(stage) => format!("{} done", name(stage)),
            Effect::Skipped { stage, because } => format!("{} skipped for {}", name(stage), name(because)),
        };
        effects.iter().map(word).collect()
    }
}

/// The position of a stage in the pipelines above.
fn index(name: &str) -> usize {
    usize::from(name.as_bytes()[0] - b'a')
}

fn hit(key: Digest, output: Digest) -> Box<Hit> {
    Box::new(Hit {
        key,
        output: TreeRef { digest: output, ..TreeRef::default() },
        log: None,
        metrics: None,
        events: None,
        results: BTreeMap::new(),
        peak_memory: None,
        seconds: 0.0,
        cautions: Vec::new(),
        unchecked: false,
        cpu: None,
    })
}

/// The names of the stages that may start, in order.
fn ready(board: &Board<'_>) -> String {
    let mut names = String::new();
    let mut last = None;
    while let Some(stage) = board.next_ready(last) {
        names.push(char::from(b'a' + stage as u8));
        last = Some(stage);
    }
    names
}

/// How the stages would end now.
fn ends(board: &Board<'_>) -> String {
    let ends: Vec<String> = (0..board.states.len()).map(|stage| board.end_of(stage).to_string()).collect();
    ends.join(", ")
}

/// A world whose cache has the results of a complete run.
fn cached(text: &str) -> World {
    let world = World::new(text);
    let (mut board, _) = world.resolved();
    while let Some(stage) = board.next_ready(None) {
        let name = &world.pipeline.stages[stage].name;
        world.run(&mut board, name, name);
    }
    assert_eq!(board.ending(), Ending::Done);
    drop(board);
    world
}

#[test]
fn a_stage_waits_until_the_contents_of_its_inputs_are_known() {
    let world = World::new(DIAMOND);
    let (mut board, effects) = world.resolved();
    assert!(effects.is_empty());
    assert_eq!((ready(&board).as_str(), board.ending()), ("a", Ending::Interrupted));
    assert_eq!(ends(&board), "not started, not started, not started, not started");
    assert!(board.start(index("b")).is_none(), "it is still waiting");

    assert!(world.run(&mut board, "a", "1").is_empty());
    assert_eq!(ready(&board), "bc");
    world.run(&mut board, "b", "2");
    assert_eq!(ready(&board), "c", "d needs both");
    world.run(&mut board, "c", "3");
    assert_eq!(ready(&board), "d");
    world.run(&mut board, "d", "4");
    assert_eq!((ends(&board).as_str(), board.ending()), ("ran, ran, ran, ran", Ending::Done));
}

#[test]
fn cached_stages_are_done_and_their_users_are_looked_up() {
    let world = cached(DIAMOND);
    let (board, effects) = world.resolved();
    assert_eq!(effects, ["a done", "b done", "c done", "d done"]);
    assert_eq!((ends(&board).as_str(), board.ending()), ("cached, cached, cached, cached", Ending::Done));
    assert!(!board.done(0).unwrap().ran);
}

#[test]
fn stages_after_an_unchanged_output_stay_cached() {
    let world = cached(DIAMOND);
    // `a` has a different key, but produces the same output as before.
    world.source.set("edited");
    let (mut board, effects) = world.resolved();
    assert!(effects.is_empty());
    world.source.set("");
    let mut effects = world.run(&mut board, "a", "a");
    effects.sort_unstable();
    assert_eq!(effects, ["b done", "c done", "d done"]);
    assert_eq!(ends(&board), "ran, cached, cached, cached");
    // Now it produces a different output.
    world.source.set("edited once more");
    let (mut board, _) = world.resolved();
    world.source.set("");
    assert!(world.run(&mut board, "a", "other").is_empty());
    assert_eq!(ready(&board), "bc");
}

#[test]
fn forced_stages_run_even_if_they_are_cached() {
    let mut world = cached(DIAMOND);
    world.selection = World::selecting(DIAMOND, &[], &["b"]).selection;
    let (mut board, effects) = world.resolved();
    assert_eq!(effects, ["a done", "c done"]);
    let todo = board.start(index("b")).unwrap();
    assert_eq!(todo.reason, MissReason::Forced);
}

#[test]
fn stages_that_are_not_selected_are_cached_or_left_out() {
    let world = World::selecting(DIAMOND, &["a"], &[]);
    let (mut board, _) = world.resolved();
    world.run(&mut board, "a", "1");
    assert_eq!(ready(&board), "");
    assert_eq!((ends(&board).as_str(), board.ending()), ("ran, left out, left out, left out", Ending::Done));

    let mut world = cached(DIAMOND);
    world.selection = World::selecting(DIAMOND, &["d"], &[]).selection;
    let (board, _) = world.resolved();
    assert_eq!((ends(&board).as_str(), board.ending()), ("cached, cached, cached, cached", Ending::Done));

    let world = World::selecting(DIAMOND, &["b"], &[]);
    let (board, _) = world.resolved();
    assert_eq!(ends(&board), "left out, not started, left out, left out");
    assert_eq!(board.ending(), Ending::Interrupted, "its input is neither selected nor cached");
}

#[test]
fn ready_stages_come_in_the_order_of_execution() {
    let text = "
stages.a = { kind = \"synthetic\", text = \"a\", after = \"d\" }
stages.b = { kind = \"synthetic\", text = \"b\" }
stages.c = { kind = \"synthetic\", text = \"c\" }
stages.d = { kind = \"synthetic\", text = \"d\" }
";
    let world = World::new(text);
    let mut board = world.board();
    world.resolve(&mut board, vec![3, 1, 2, 0]);
    assert_eq!(ready(&board), "bcd");
    assert_eq!(board.next_ready(Some(index("b"))), Some(index("c")));
    // A deeper stage comes later, even if it was ready earlier.
    world.run(&mut board, "d", "4");
    assert_eq!(ready(&board), "bca");
    assert!(board.start(index("c")).is_some());
    assert_eq!(ready(&board), "ba");
    assert!(board.start(index("c")).is_none(), "it is already running");
    assert_eq!(board.end_of(index("c")), StageState::Stopped);
}

#[test]
fn users_of_a_failed_stage_are_skipped_and_nothing_new_starts() {
    let world = World::new(DIAMOND);
    let (mut board, _) = world.resolved();
    world.run(&mut board, "a", "1");
    board.start(index("b")).unwrap();
    let effects = board.failed(index("b"));
    assert_eq!(world.words(&effects), ["d skipped for b"]);
    assert_eq!(ready(&board), "", "c could run, but does not");
    assert_eq!((ends(&board).as_str(), board.ending()), ("ran, failed, not started, skipped", Ending::Failed));
    assert!(board.failed(index("b")).is_empty(), "skipped once");
}

#[test]
fn a_failure_skips_through_several_layers() {
    let world = World::new(DIAMOND);
    let (mut board, _) = world.resolved();
    board.start(index("a")).unwrap();
    let effects = board.failed(index("a"));
    let mut words = world.words(&effects);
    words.sort_unstable();
    assert_eq!(words, ["b skipped for a", "c skipped for a", "d skipped for a"]);
    assert_eq!(board.ending(), Ending::Failed);
}

#[test]
fn a_run_that_keeps_going_runs_the_other_stages() {
    let world = World::new(DIAMOND);
    let mut board = Board::new(&world.graph, &world.selection, true);
    world.resolve(&mut board, world.graph.order().to_vec());
    world.run(&mut board, "a", "1");
    board.start(index("b")).unwrap();
    board.failed(index("b"));
    assert_eq!(ready(&board), "c");
    assert!(world.run(&mut board, "c", "3").is_empty());
    assert_eq!((ends(&board).as_str(), board.ending()), ("ran, failed, ran, skipped", Ending::Failed));
}

#[test]
fn a_stopped_stage_skips_nothing() {
    let world = World::new(DIAMOND);
    let (mut board, _) = world.resolved();
    board.start(index("a")).unwrap();
    board.stopped(index("a"));
    let ended = "stopped, not started, not started, not started";
    assert_eq!((ends(&board).as_str(), board.ending()), (ended, Ending::Interrupted));
}

#[test]
fn of_two_stages_with_the_same_key_one_runs_and_both_are_done() {
    let world = World::new(TWINS);
    let (mut board, _) = world.resolved();
    assert_eq!(ready(&board), "a", "b is behind it");
    assert_eq!(board.end_of(index("b")), StageState::NotStarted);
    assert_eq!(world.run(&mut board, "a", "1"), ["b done"]);
    assert_eq!(ready(&board), "cd", "the users of both");
    assert_eq!(ends(&board), "ran, cached, not started, not started");
}

#[test]
fn stages_behind_a_stage_fail_and_stop_with_it() {
    let world = World::new(TWINS);
    let (mut board, _) = world.resolved();
    board.start(index("a")).unwrap();
    let mut words = world.words(&board.failed(index("a")));
    words.sort_unstable();
    assert_eq!(words, ["b skipped for a", "c skipped for a", "d skipped for a"]);

    let (mut board, _) = world.resolved();
    board.start(index("a")).unwrap();
    board.stopped(index("a"));
    assert_eq!(ends(&board), "stopped, not started, not started, not started");
}

#[test]
fn a_stage_whose_key_becomes_known_late_gets_the_outcome_of_the_first() {
    let world = World::new(LATE_TWINS);
    let mut board = Board::new(&world.graph, &world.selection, true);
    world.resolve(&mut board, world.graph.order().to_vec());
    world.run(&mut board, "a", "1");
    board.start(index("b")).unwrap();
    board.failed(index("b"));
    assert_eq!(world.run(&mut board, "f", "1"), ["c skipped for b", "e skipped for b"]);

    // Both are forced, but the first has just made the artifact.
    let mut world = World::new(LATE_TWINS);
    world.selection = World::selecting(LATE_TWINS, &[], &["b", "c"]).selection;
    let (mut board, _) = world.resolved();
    world.run(&mut board, "a", "1");
    world.run(&mut board, "b", "2");
    assert_eq!(world.run(&mut board, "f", "1"), ["c done"]);
    assert_eq!(board.end_of(index("c")), StageState::Cached);
}

#[test]
fn a_stage_that_waited_for_another_run_is_resolved_again() {
    let world = World::new(TWINS);
    let (mut board, _) = world.resolved();
    board.start(index("a")).unwrap();
    let next = board.requeue(index("a"));
    assert!(world.resolve(&mut board, next).is_empty());
    assert_eq!(ready(&board), "a", "it can start now");

    // Another run has made the artifact: the stage behind it is done, too.
    let key = board.start(index("a")).unwrap().manifest.key();
    world.cache.borrow_mut().insert(key, Digest::of(b"1"));
    let next = board.requeue(index("a"));
    assert_eq!(world.resolve(&mut board, next), ["a done", "b done"]);
    assert_eq!(ready(&board), "cd");

    // The user's files have changed: the stage has a new key, and the stage behind it still waits for it.
    let world = World::new(TWINS);
    let (mut board, _) = world.resolved();
    let old = board.start(index("a")).unwrap().manifest.key();
    world.source.set("edited");
    let next = board.requeue(index("a"));
    assert!(world.resolve(&mut board, next).is_empty());
    assert!(!board.makers.contains_key(&old), "no stage makes this any more");
    assert_eq!(world.run(&mut board, "a", "1"), ["b done"]);
}
