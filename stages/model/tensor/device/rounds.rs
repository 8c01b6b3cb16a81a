//! Work that is done in rounds that are alike, such as the tokens of an answer: what a round calls is collected, and once two rounds
//! have called the same, the device makes it as one (on a GPU, a CUDA graph). Independent of what is computed.
//!
//! Nobody has to say what differs between rounds. A round's kernels and products are collected until something else is called, such
//! as the reading of a result. If they are those of the round before, with the same parameters, the device keeps them, and repeats
//! them as long as rounds call them; else they are made one by one. So that parameters are the same:
//! - **Memory that a round takes** is what rounds have given back, in the same order each time (`pieces.rs`).
//! - **What is uploaded to new memory** (tables of addresses, positions) gets a place in one buffer, as long as there is one. All of it
//!   is uploaded at once before the calls, so no place is used twice in a round.
//! - **Other memory that is freed** stays until the calls are made.
#![allow(unsafe_code)]

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use super::{
    Device, DeviceError,
    driver::{Call, Stream},
    launch::must,
    pieces::Pieces,
};

/// The variable that turns this off.
const GRAPHS: &str = "IMP_FLOW_GPU_GRAPHS";
/// Where tables may begin, as memory of its own would.
const ALIGNMENT: usize = 256;

/// The rounds of a device.
pub(super) struct Rounds {
    state: Mutex<State>,
    /// False: each call is made at once.
    on: bool,
}

#[derive(Default)]
struct State {
    /// Whether somebody works in rounds.
    is_taken: bool,
    /// The thread of the round under way.
    thread: Option<ThreadId>,
    /// Whether the round collects calls: until something else is called.
    collects: bool,
    calls: Vec<Call>,
    /// Those of the round before, and those that the device keeps.
    before: Vec<Call>,
    kept: Vec<Call>,
    pieces: Pieces,
    tables: Tables,
    /// What was freed while calls that may use it were collected.
    freed: Vec<(u64, usize)>,
    refused: Refused,
    made: Repeated,
}

/// Whether the device makes no calls as one.
#[derive(Default)]
struct Refused {
    /// Until the work is done: there may be more memory then.
    now: bool,
    for_good: bool,
    /// Why, last.
    why: Option<String>,
    is_told: bool,
}

/// A buffer for what a round uploads.
#[derive(Default)]
struct Tables {
    address: u64,
    room: usize,
    /// What the round uploads.
    content: Vec<u8>,
    /// Bytes that this round would like to have.
    wanted: usize,
    /// Tables in use.
    live: usize,
}

/// What a device has made in rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeated {
    /// Number of rounds.
    pub rounds: u64,
    /// Number of those in which calls were made as one.
    pub as_one: u64,
    /// Number of calls that were made by themselves in rounds.
    pub singles: u64,
}

impl Tables {
    /// A place for a table, if there is room for it.
    fn place(&mut self, table: &[u8]) -> Option<u64> {
        let start = self.content.len().next_multiple_of(ALIGNMENT);
        if start + table.len() > self.room {
            return None;
        }
        self.content.resize(start, 0);
        self.content.extend_from_slice(table);
        self.live += 1;
        Some(self.address + start as u64)
    }

    fn has(&self, address: u64) -> bool {
        (self.address..self.address + self.room as u64).contains(&address)
    }
}

impl State {
    fn is_mine(&self) -> bool {
        self.thread == Some(thread::current().id())
    }
}

/// Work in rounds at a place. On the host, and where somebody else already works in rounds, it is done as ever.
pub struct Repeats(Option<Device>);

impl Repeats {
    /// Work in rounds on a device.
    pub(in crate::tensor) fn on(device: Option<&Device>) -> Self {
        Self(device.filter(|device| device.takes_rounds()).cloned())
    }

    /// Does a round.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let Some(device) = self.0.as_ref().filter(|device| device.begin_round()) else { return work() };
        let round = Round(device);
        let result = work();
        must(device.make_collected());
        drop(round);
        result
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        if let Some(device) = &self.0 {
            device.forget_rounds();
        }
    }
}

/// A round under way.
struct Round<'a>(&'a Device);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        // In case of a panic there may be calls. What fails now has failed before.
        let _ = self.0.make_collected();
        self.0.end_round();
    }
}

impl Default for Rounds {
    fn default() -> Self {
        Self { state: Mutex::default(), on: true }
    }
}

impl Rounds {
    /// On, unless the environment says otherwise.
    ///
    /// # Errors
    /// If what it says means nothing.
    pub(super) fn new() -> Result<Self, DeviceError> {
        let said = std::env::var_os(GRAPHS).unwrap_or_else(|| "1".into());
        let on = match said.to_string_lossy().as_ref() {
            "0" => false,
            "1" => true,
            other => {
                return Err(DeviceError::Unavailable(format!(
                    "{GRAPHS} is `{}`, which means nothing: set it to 0, for each call of a token by itself, or to 1, for all as one",
                    other.escape_debug()
                )));
            }
        };
        Ok(Self { on, ..Self::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that earlier rounds have used, for this thread's round.
    pub(super) fn take(&self, bytes: usize) -> Option<u64> {
        let mut state = self.state();
        if state.is_mine() { state.pieces.take(bytes) } else { None }
    }

    /// Lets later rounds use memory that this thread's round has taken.
    pub(super) fn add(&self, address: u64, bytes: usize) {
        let mut state = self.state();
        if state.is_mine() {
            state.pieces.add(address, bytes);
        }
    }

    /// Frees what rounds use, or is to be freed after the calls of a round. False if it is neither.
    pub(super) fn give_back(&self, address: u64, bytes: usize) -> bool {
        let mut state = self.state();
        if state.tables.has(address) {
            state.tables.live -= 1;
            return true;
        }
        if state.pieces.give_back(address) {
            return true;
        }
        let later = state.collects;
        if later {
            state.freed.push((address, bytes));
        }
        later
    }

    /// A place for what this thread's round uploads to new memory.
    pub(super) fn table(&self, content: &[u8]) -> Option<u64> {
        let mut state = self.state();
        if content.is_empty() || !state.is_mine() {
            return None;
        }
        state.tables.wanted = state.tables.wanted.next_multiple_of(ALIGNMENT) + content.len();
        if state.collects { state.tables.place(content) } else { None }
    }
}

impl Device {
    /// What was made in rounds since the device was opened.
    pub fn repeated(&self) -> Repeated {
        self.0.rounds.state().made
    }

    /// Why the device does not make calls as one, if it has refused to. Each reason is told once.
    pub fn refusal(&self) -> Option<String> {
        let refused = &mut self.0.rounds.state().refused;
        let was_told = std::mem::replace(&mut refused.is_told, true);
        refused.why.clone().filter(|_| !was_told)
    }

    fn takes_rounds(&self) -> bool {
        // Who asks for the time of each call wants each call.
        let on = self.0.rounds.on && !self.is_profiled();
        on && !std::mem::replace(&mut self.0.rounds.state().is_taken, true)
    }

    fn begin_round(&self) -> bool {
        let mut state = self.0.rounds.state();
        if state.thread.is_some() {
            return false;
        }
        let wanted = std::mem::take(&mut state.tables.wanted);
        if wanted > state.tables.room {
            self.free_tables(&mut state);
            // Without memory, tables are uploaded one by one.
            if let Ok(address) = self.alloc_now(Stream::Compute, wanted) {
                (state.tables.address, state.tables.room) = (address, wanted);
            }
        }
        state.thread = Some(thread::current().id());
        state.collects = true;
        state.made.rounds += 1;
        true
    }

    /// Collects a call of this thread's round, or gives it back to be made now.
    pub(super) fn collect(&self, call: Call) -> Option<Call> {
        let mut state = self.0.rounds.state();
        if !state.is_mine() {
            return Some(call);
        }
        if !state.collects {
            state.made.singles += 1;
            return Some(call);
        }
        state.calls.push(call);
        None
    }

    /// Makes what this thread's round has collected; what it calls from now on is made at once.
    pub(super) fn make_collected(&self) -> Result<(), DeviceError> {
        let mut state = self.0.rounds.state();
        if !(state.collects && state.is_mine()) {
            return Ok(());
        }
        state.collects = false;
        let made = self.make_all(&mut state);
        for (address, bytes) in std::mem::take(&mut state.freed) {
            self.free_now(address, bytes);
        }
        made
    }

    fn make_all(&self, state: &mut State) -> Result<(), DeviceError> {
        let driver = &*self.0.driver;
        let calls = std::mem::take(&mut state.calls);
        let tables = std::mem::take(&mut state.tables.content);
        if !tables.is_empty() {
            self.0.uploads.overwrite(driver, state.tables.address, &tables)?;
        }
        // SAFETY: what the calls use is alive: the pieces and tables of rounds, and what is freed after this.
        let made_as_one = unsafe { self.make_as_one(state, &calls) };
        if made_as_one {
            state.made.as_one += 1;
        } else {
            state.made.singles += calls.len() as u64;
            // SAFETY: as above.
            calls.iter().try_for_each(|call| unsafe { call.make(driver) })?;
        }
        state.before = calls;
        Ok(())
    }

    /// Makes calls as one if the device keeps them, or can. False if they were not made.
    ///
    /// # Safety
    /// As for the calls.
    unsafe fn make_as_one(&self, state: &mut State, calls: &Vec<Call>) -> bool {
        if calls.is_empty() || state.refused.now {
            return false;
        }
        let driver = &*self.0.driver;
        let made = if *calls == state.kept {
            // SAFETY: as the caller says.
            unsafe { driver.repeat() }
        } else if *calls == state.before {
            state.kept.clone_from(calls);
            // SAFETY: as the caller says.
            unsafe { driver.keep(calls).and_then(|()| driver.repeat()) }
        } else {
            return false;
        };
        if let Err(error) = &made {
            // Nothing was made. If the device has failed, so will the first call.
            let Refused { now, for_good, why, is_told } = &mut state.refused;
            (*now, *for_good) = (true, !matches!(error, DeviceError::OutOfMemory { .. }));
            // How much memory is free does not make it another reason.
            if why.is_none() || *for_good {
                (*why, *is_told) = (Some(error.to_string()), false);
            }
            state.kept.clear();
        }
        made.is_ok()
    }

    fn end_round(&self) {
        let mut state = self.0.rounds.state();
        state.thread = None;
        assert!(state.tables.live == 0 || thread::panicking(), "a table is in use after its round");
        for (address, bytes) in state.pieces.settle() {
            self.free_now(address, bytes);
        }
    }

    /// Frees what this thread's round has given back. False if there is nothing of that kind.
    pub(super) fn release_pieces(&self) -> Result<bool, DeviceError> {
        let before = self.live_bytes();
        self.make_collected()?;
        let mut state = self.0.rounds.state();
        if state.is_mine() {
            for (address, bytes) in state.pieces.release() {
                self.free_now(address, bytes);
            }
        }
        Ok(self.live_bytes() < before)
    }

    /// Gives back what rounds have used.
    fn forget_rounds(&self) {
        let mut state = self.0.rounds.state();
        // SAFETY: there are no calls. What fails now has failed before.
        let _ = unsafe { self.0.driver.keep(&[]) };
        // None was taken since the last round.
        for (address, bytes) in state.pieces.settle() {
            self.free_now(address, bytes);
        }
        self.free_tables(&mut state);
        let mut refused = std::mem::take(&mut state.refused);
        refused.now = refused.for_good;
        *state = State { refused, made: state.made, ..State::default() };
    }

    fn free_tables(&self, state: &mut State) {
        let Tables { address, room, .. } = std::mem::take(&mut state.tables);
        if room > 0 {
            self.free_now(address, room);
        }
    }
}
