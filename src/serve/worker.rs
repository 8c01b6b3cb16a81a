//! The thread that computes: it answers one request after the other, on one conversation, so that a request that goes on where the last
//! one ended has only its new turns read. Independent of HTTP.

use std::{
    collections::VecDeque,
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use imp_stages::{
    conversation::{Conversation, Dialogue, Ended, Manner, NoAnswer, Reply},
    speaker::Speaker,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{pool, report};

/// A request to compute.
pub(super) struct Task {
    pub(super) dialogue: Dialogue,
    pub(super) manner: Manner,
    /// Its place in the queue, free again when it is done.
    pub(super) _place: OwnedSemaphorePermit,
    /// Who waits for it. When nobody does any more, it ends.
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Event {
    /// A new part of the answer.
    Part(String),
    Done(Box<Reply>),
    Refused(NoAnswer),
    /// The server ends.
    Ending,
    /// A fault of the program.
    Broken,
}

/// The other end of the thread.
pub(super) struct Worker(Arc<Queue>);

/// The requests that wait.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    tasks: VecDeque<Task>,
    /// Whether no more can come.
    is_closed: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next request. `None` if there is none and no more can come.
    fn next(&self) -> Option<Task> {
        let is_idle = |waiting: &mut Waiting| waiting.tasks.is_empty() && !waiting.is_closed;
        let mut waiting = self.more.wait_while(self.waiting(), is_idle).unwrap_or_else(PoisonError::into_inner);
        waiting.tasks.pop_front()
    }
}

impl Worker {
    /// Starts the thread. It stops what it computes when `stop` is set.
    pub(super) fn start(speaker: Speaker, stop: Arc<AtomicBool>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let todo = queue.clone();
        std::thread::Builder::new().name("answers".into()).spawn(move || {
            pool::own();
            let mut conversation = Conversation::new(&speaker);
            while let Some(task) = todo.next() {
                // After a panic nothing is known of what the model has read.
                if catch_unwind(AssertUnwindSafe(|| answer(&mut conversation, &task, &stop))).is_err() {
                    conversation = Conversation::new(&speaker);
                    let _ = task.events.send(Event::Broken);
                }
                report::cautions(speaker.slowed().as_slice());
            }
        })?;
        Ok(Self(queue))
    }

    /// Adds a request to the queue. The places in the queue bound how many there are.
    pub(super) fn add(&self, task: Task) {
        self.0.waiting().tasks.push_back(task);
        self.0.more.notify_one();
    }

    /// Drops the requests for which nobody waits any more, so that their places in the queue are free.
    pub(super) fn forget_abandoned(&self) {
        self.0.waiting().tasks.retain(|task| !task.events.is_closed());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.waiting().is_closed = true;
        self.0.more.notify_one();
    }
}

fn answer(conversation: &mut Conversation<'_>, task: &Task, stop: &AtomicBool) {
    let ends = || stop.load(Ordering::Relaxed);
    let Task { dialogue, manner, events, _place: _ } = task;
    if events.is_closed() {
        return;
    }
    // Sending fails only if the client has left, which is looked at anyway.
    if ends() {
        let _ = events.send(Event::Ending);
        return;
    }
    let told = |part: &str| {
        if !part.is_empty() {
            let _ = events.send(Event::Part(part.into()));
        }
        if events.is_closed() || ends() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let _ = events.send(match conversation.answer(dialogue, manner, told) {
        Ok(reply) if reply.ended == Ended::Interrupted => Event::Ending,
        Err(NoAnswer::Interrupted) => Event::Ending,
        Ok(reply) => Event::Done(Box::new(reply)),
        Err(error) => Event::Refused(error),
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;

    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn a_request_for_which_nobody_waits_takes_no_place() {
        let (worker, places) = (Worker(Arc::default()), Arc::new(Semaphore::new(2)));
        let ask = || {
            let (events, answer) = mpsc::unbounded_channel();
            let manner = Manner { max_tokens: 1, sampling: imp_model::Sampling::default(), stop: Vec::new() };
            let place = places.clone().try_acquire_owned().unwrap();
            worker.add(Task { dialogue: Dialogue::default(), manner, _place: place, events });
            answer
        };
        let (waits, left) = (ask(), ask());
        worker.forget_abandoned();
        assert_eq!(places.available_permits(), 0);
        drop(left);
        worker.forget_abandoned();
        assert_eq!(places.available_permits(), 1);
        // The thread gets the other one, and ends when no more can come.
        let queue = worker.0.clone();
        let thread = thread::spawn(move || (queue.next().is_some(), queue.next().is_none()));
        drop(worker);
        assert_eq!(thread.join().unwrap(), (true, true));
        drop(waits);
    }
}
