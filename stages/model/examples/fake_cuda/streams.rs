//! Streams and events. What is called on a stream is queued, and runs when it, or an event after it, is waited for; on one that is
//! captured, it is only kept.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::world::{Code, Failed};

/// Calls that wait at most, so that what is freed does not stay for ever.
const LATE: usize = 1 << 14;

/// What is computed, and addresses in the memory that it uses.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) uses: Vec<u64>,
    pub(crate) run: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

pub(crate) enum Call {
    /// The addresses are those where the memory begins.
    Work(Work),
    /// Of memory that is given back.
    Free(u64),
    /// The number of the event, and how often it was recorded then.
    Record(usize, u64),
    Wait(usize, u64),
}

pub(crate) struct Stream {
    pub(crate) context: usize,
    queue: VecDeque<Call>,
    /// What was called since it is captured.
    pub(crate) captured: Option<Vec<Work>>,
}

pub(crate) struct Event {
    pub(crate) context: usize,
    /// How often it was recorded by calls, and by calls that have run.
    called: u64,
    reached: u64,
}

impl Stream {
    pub(crate) fn of(context: usize) -> Self {
        Self { context, queue: VecDeque::new(), captured: None }
    }
}

impl Event {
    pub(crate) fn of(context: usize) -> Self {
        Self { context, called: 0, reached: 0 }
    }
}

/// All streams and events, by the numbers that are their handles.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) all: BTreeMap<usize, Stream>,
    pub(crate) events: BTreeMap<usize, Event>,
    /// Memory whose giving back has run.
    pub(crate) freed: BTreeSet<u64>,
    /// Contexts in which something has failed: all later calls do.
    pub(crate) failed: BTreeSet<usize>,
}

impl Streams {
    pub(crate) fn call(&mut self, stream: usize, call: Call) -> Result<(), Failed> {
        if self.stream(stream)?.captured.is_some() {
            return Err(Failed::misuse(Code::CaptureUnsupported, "this can't be captured"));
        }
        self.stream(stream)?.queue.push_back(call);
        while self.stream(stream)?.queue.len() > LATE {
            self.run_next(stream)?;
        }
        Ok(())
    }

    pub(crate) fn record(&mut self, stream: usize, event: usize) -> Result<(), Failed> {
        let recorded = self.event(event)?;
        recorded.called += 1;
        let count = recorded.called;
        self.call(stream, Call::Record(event, count))
    }

    /// Lets a stream wait for an event as it was recorded last.
    pub(crate) fn wait(&mut self, stream: usize, event: usize) -> Result<(), Failed> {
        let count = self.event(event)?.called;
        self.call(stream, Call::Wait(event, count))
    }

    /// Runs all that a stream has.
    pub(crate) fn finish(&mut self, stream: usize) -> Result<(), Failed> {
        if self.stream(stream)?.captured.is_some() {
            return Err(Failed::misuse(Code::CaptureUnsupported, "a stream that is captured is waited for"));
        }
        while !self.stream(stream)?.queue.is_empty() {
            self.run_next(stream)?;
        }
        Ok(())
    }

    /// Runs what comes before the last recording of an event.
    pub(crate) fn reach(&mut self, event: usize) -> Result<(), Failed> {
        let count = self.event(event)?.called;
        self.reach_count(event, count)
    }

    fn reach_count(&mut self, event: usize, count: u64) -> Result<(), Failed> {
        while self.event(event)?.reached < count {
            let records = |call: &Call| matches!(call, Call::Record(of, number) if (*of, *number) == (event, count));
            let found = self.all.iter().find(|(_, stream)| stream.queue.iter().any(records));
            let Some(stream) = found.map(|(number, _)| *number) else {
                return Err(Failed::misuse(Code::InvalidHandle, "an event whose stream is gone is waited for"));
            };
            self.run_next(stream)?;
        }
        Ok(())
    }

    fn run_next(&mut self, stream: usize) -> Result<(), Failed> {
        match self.stream(stream)?.queue.pop_front() {
            None => {}
            Some(Call::Work(Work { uses, run })) => {
                let gone = uses.iter().find(|address| self.freed.contains(address));
                let outcome = match gone {
                    Some(address) => Err(format!("memory at {address:#x} is used after it was given back")),
                    None => run(),
                };
                if let Err(fault) = outcome {
                    let context = self.stream(stream)?.context;
                    self.failed.insert(context);
                    return Err(Failed {
                        code: Code::LaunchFailed,
                        misuse: Some(fault).filter(|words| !words.is_empty()),
                    });
                }
            }
            Some(Call::Free(address)) => {
                self.freed.insert(address);
            }
            Some(Call::Record(event, count)) => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.reached = count;
                }
            }
            Some(Call::Wait(event, count)) => self.reach_count(event, count)?,
        }
        Ok(())
    }

    pub(crate) fn stream(&mut self, number: usize) -> Result<&mut Stream, Failed> {
        self.all.get_mut(&number).ok_or_else(|| Failed::misuse(Code::InvalidHandle, "there is no such stream"))
    }

    pub(crate) fn event(&mut self, number: usize) -> Result<&mut Event, Failed> {
        self.events.get_mut(&number).ok_or_else(|| Failed::misuse(Code::InvalidHandle, "there is no such event"))
    }
}
