//! Lets a test decide which of several threads goes on, one operation at a time. A thread that takes no part is not held up.
#![allow(clippy::unwrap_used)]

use std::{
    cell::RefCell,
    fs::File,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

/// Whether a lock may be held by several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    Shared,
    Alone,
}

#[derive(Debug)]
enum Status {
    Starting,
    Ready,
    /// It goes on once this lock can be taken.
    Waiting(File, Kind),
    Ended,
}

#[derive(Debug)]
struct State {
    threads: Vec<Status>,
    /// Who has the first turns. After those a thread keeps its turn while it can go on.
    prefix: Vec<usize>,
    choices: Vec<Choice>,
    /// The thread whose turn it is.
    turn: Option<usize>,
    /// Whether no thread can go on although some have not ended.
    stuck: bool,
}

/// The threads of one run of a test.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

thread_local! {
    static OWN: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

/// A choice between threads.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) possible: Vec<usize>,
    pub(super) chosen: usize,
    /// The thread that had its turn before.
    pub(super) before: Option<usize>,
}

impl Choice {
    /// Whether `thread` would take the turn from one that could go on.
    pub(super) fn interrupts(&self, thread: usize) -> bool {
        self.before.is_some_and(|before| before != thread && self.possible.contains(&before))
    }
}

impl Turns {
    /// The threads begin when all of them take part.
    pub(super) fn new(threads: usize, prefix: &[usize]) -> Arc<Self> {
        let threads = (0..threads).map(|_| Status::Starting).collect();
        let state = State { threads, prefix: prefix.into(), choices: Vec::new(), turn: None, stuck: false };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// All choices, and whether all threads came to their end.
    pub(super) fn result(&self) -> (Vec<Choice>, bool) {
        let state = self.state.lock().unwrap();
        (state.choices.clone(), !state.stuck)
    }

    /// Takes part as `thread` until `work` ends.
    pub(super) fn take_part(self: &Arc<Self>, thread: usize, work: impl FnOnce()) {
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                let (turns, thread) = OWN.take().unwrap();
                let mut state = turns.state.lock().unwrap();
                state.threads[thread] = Status::Ended;
                state.choose();
                turns.changed.notify_all();
            }
        }
        OWN.set(Some((self.clone(), thread)));
        let _end = End;
        self.give_up(thread, Status::Ready);
        work();
    }

    /// Ends this thread's turn, and waits for the next.
    fn give_up(&self, thread: usize, status: Status) {
        let mut state = self.state.lock().unwrap();
        state.threads[thread] = status;
        state.choose();
        if state.turn != Some(thread) {
            self.changed.notify_all();
        }
        while state.turn != Some(thread) {
            if state.stuck {
                drop(state);
                // A thread that unwinds has operations to do, too.
                assert!(std::thread::panicking(), "it waits for a lock that nobody releases");
                return;
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}

impl State {
    /// Chooses whose turn is next.
    fn choose(&mut self) {
        if self.stuck || self.threads.iter().any(|status| matches!(status, Status::Starting)) {
            return;
        }
        let possible: Vec<usize> = (0..self.threads.len()).filter(|thread| can_go_on(&self.threads[*thread])).collect();
        let before = self.choices.last().map(|choice| choice.chosen);
        let wanted = self.prefix.get(self.choices.len()).copied().or(before).filter(|thread| possible.contains(thread));
        self.turn = wanted.or(possible.first().copied());
        match self.turn {
            Some(chosen) => self.choices.push(Choice { possible, chosen, before }),
            None => self.stuck = !self.threads.iter().all(|status| matches!(status, Status::Ended)),
        }
    }
}

fn can_go_on(status: &Status) -> bool {
    match status {
        Status::Ready => true,
        Status::Waiting(file, kind) => take(file, *kind) && file.unlock().is_ok(),
        Status::Starting | Status::Ended => false,
    }
}

fn take(file: &File, kind: Kind) -> bool {
    match kind {
        Kind::Shared => file.try_lock_shared().is_ok(),
        Kind::Alone => file.try_lock().is_ok(),
    }
}

/// Whether this thread takes part in such a test.
pub(in crate::store) fn takes_part() -> bool {
    OWN.with_borrow(Option::is_some)
}

/// Before an operation at `path` that other threads could notice.
pub(in crate::store) fn pause(path: &Path) {
    let is_own = path.components().any(|part| part.as_os_str() == "tmp");
    if let Some((turns, thread)) = OWN.with_borrow(Clone::clone).filter(|_| !is_own) {
        turns.give_up(thread, Status::Ready);
    }
}

/// Waits until a lock is free. False if this thread takes no part.
pub(in crate::store) fn wait(file: &File, kind: Kind) -> bool {
    let Some((turns, thread)) = OWN.with_borrow(Clone::clone) else { return false };
    turns.give_up(thread, Status::Waiting(file.try_clone().unwrap(), kind));
    true
}
