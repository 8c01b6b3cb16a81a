//! Asks a remote cache for what is to be made, and sends it what was made, beside the stages that run. Independent of how a remote
//! cache is reached; decides only when it is asked, and that nothing waits for it in vain.

use std::{
    collections::HashSet,
    sync::{Arc, mpsc as queue},
    thread,
    time::{Duration, Instant},
};

use imp_stages::contract::event::{BYTES, Event, Progress};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use super::{
    SchedulerError,
    event::Exchange,
    lookup::Found,
    plan::CHANGED,
    step::{StepEnd, StepEvent},
};
use crate::{
    executor::StopSignal,
    remote::{Meter, Pulled, Pushed, Remote, Trouble, Uses, Want},
    store::{Digest, Manifest, Store},
};

/// Results that are taken at once.
const AT_ONCE: usize = 4;
/// How often progress is looked at.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// A transfer of which nothing is heard for so long hangs, as on a network disk whose server is gone; longer where the user is patient.
const SILENCE: Duration = Duration::from_mins(5);

/// The exchange with a remote cache during a run.
pub(super) struct Supply {
    pub(super) remote: Arc<Remote>,
    store: Store,
    /// The keys for which it was asked. Once is enough.
    asked: HashSet<Digest>,
    pulling: usize,
    exchange: Exchange,
    jobs: queue::Sender<(Digest, Option<usize>)>,
    sent: mpsc::UnboundedReceiver<Sent>,
    /// Results that are being sent or wait for it.
    open: usize,
    meter: Meter,
}

/// The end of sending a result.
pub(super) struct Sent {
    key: Digest,
    /// The stage that made it, if it was one of this run.
    pub(super) stage: Option<usize>,
    end: Result<Pushed, Trouble>,
}

impl Supply {
    /// Starts the thread that sends results, which ends with this run.
    pub(super) fn new(remote: Arc<Remote>, store: &Store) -> Self {
        let (jobs, todo) = queue::channel::<(Digest, Option<usize>)>();
        let (ended, sent) = mpsc::unbounded_channel();
        let meter = Meter::default();
        let exchange = Exchange { remote: remote.address(), ..Exchange::default() };
        let supply = Self {
            remote: remote.clone(),
            store: store.clone(),
            asked: HashSet::new(),
            pulling: 0,
            exchange,
            jobs,
            sent,
            open: 0,
            meter: meter.clone(),
        };
        let store = store.clone();
        // Not a task of the runtime, which would wait for it at the end.
        thread::spawn(move || {
            for (key, stage) in todo {
                // What an earlier run could not finish is looked at closely.
                let is_old = stage.is_none();
                let end = if remote.takes_results() {
                    remote.push(&store, key, is_old, &meter)
                } else {
                    Err(Trouble::Stopped)
                };
                if ended.send(Sent { key, stage, end }).is_err() {
                    return;
                }
            }
        });
        supply
    }

    /// Whether the remote cache has still to be asked for a key before its stage is made.
    pub(super) fn is_open(&self, key: Digest) -> bool {
        !self.asked.contains(&key) && self.remote.has_answers()
    }

    /// Takes a place among those that are asked for at once. False if there is none.
    pub(super) fn begin(&mut self, key: Digest) -> bool {
        let free = self.pulling < AT_ONCE;
        if free {
            self.pulling += 1;
            self.asked.insert(key);
        }
        free
    }

    /// Gives the place back.
    pub(super) fn ended(&mut self) {
        self.pulling -= 1;
    }

    /// Notes that a result was taken.
    pub(super) fn pulled(&mut self, bytes: u64) {
        self.exchange.pulled += 1;
        self.exchange.pulled_bytes += bytes;
    }

    /// Has the results sent that earlier runs could not send. Returns their keys, which have to stay.
    pub(super) fn resume(&mut self) -> Vec<Digest> {
        if !self.remote.is_writable() {
            return Vec::new();
        }
        let keys = self.store.unsent_to(&self.exchange.remote);
        for key in &keys {
            self.enqueue(*key, None);
        }
        keys
    }

    /// Has a result sent that a stage of this run has made.
    pub(super) fn send(&mut self, key: Digest, stage: usize) {
        if !self.remote.is_writable() {
            return;
        }
        // Whatever happens to this run, the next one knows of it.
        if let Err(error) = self.store.note_unsent(key, &self.exchange.remote) {
            tracing::warn!("if this run ends early, the next one will not push what is left: {error}");
        }
        self.enqueue(key, Some(stage));
    }

    fn enqueue(&mut self, key: Digest, stage: Option<usize>) {
        // The thread ends only with this run.
        self.open += usize::from(self.jobs.send((key, stage)).is_ok());
    }

    /// Waits for the end of sending a result. Never returns while none is being sent.
    pub(super) async fn next(&mut self) -> Sent {
        match self.sent.recv().await {
            Some(sent) => sent,
            None => std::future::pending().await,
        }
    }

    /// Notes the end of sending a result.
    pub(super) fn on_sent(&mut self, sent: &Sent) {
        self.open -= 1;
        match &sent.end {
            Ok(Pushed::Later) => self.exchange.unsent += 1,
            Ok(pushed) => {
                self.store.forget_unsent(sent.key);
                if let Pushed::Sent { bytes } = pushed {
                    self.exchange.sent += 1;
                    self.exchange.sent_bytes += bytes;
                }
            }
            Err(trouble) => {
                self.exchange.unsent += 1;
                self.remote.note(trouble);
            }
        }
    }

    /// How many results are still to be sent, the bytes that have left and all.
    pub(super) fn sending(&self) -> (usize, u64, u64) {
        let (done, total) = self.meter.read();
        (self.open, done.min(total), total)
    }

    /// Whether what is to be sent is being read here.
    pub(super) fn is_busy_here(&self) -> bool {
        self.meter.is_busy_here()
    }

    /// Whether what this run uses has to be known there, so that it is kept.
    pub(super) fn has_uses(&self) -> bool {
        self.remote.takes_results() && self.exchange.pulled + self.exchange.sent + self.open > 0
    }

    /// Records what this run uses, in a thread that nobody waits for long.
    pub(super) fn record_uses(&self, id: &str, uses: Uses) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        let (remote, id) = (self.remote.clone(), id.to_string());
        thread::spawn(move || {
            if let Err(trouble) = remote.record_uses(&id, &uses) {
                remote.note(&trouble);
            }
            let _ = done.send(());
        });
        wait
    }

    /// What was exchanged until now; `None` if nothing was.
    pub(super) fn exchange(&mut self) -> Option<&Exchange> {
        self.exchange.unsent += std::mem::take(&mut self.open);
        self.exchange.unusable = self.remote.bad();
        let Exchange { pulled, sent, unsent, unusable, .. } = self.exchange;
        (pulled + sent + unsent + unusable > 0).then_some(&self.exchange)
    }
}

/// Notices when nothing more comes of a transfer.
pub(super) struct Patience {
    seen: (u64, u64),
    at: Instant,
    limit: Duration,
}

impl Patience {
    pub(super) fn new(remote: &Remote) -> Self {
        // A server is asked three times, each time twice as long.
        Self { seen: (0, 0), at: Instant::now(), limit: SILENCE.max(8 * remote.patience()) }
    }

    /// Whether nothing has changed for too long. What is done here, `busy`, takes its time.
    pub(super) fn is_over(&mut self, now: (u64, u64), busy: bool) -> bool {
        if self.seen != now || busy {
            (self.seen, self.at) = (now, Instant::now());
        }
        self.at.elapsed() > self.limit
    }
}

/// What the remote cache is asked for.
pub(super) struct Question {
    pub(super) index: usize,
    pub(super) key: Digest,
    pub(super) manifest: Manifest,
}

/// Asks the remote cache for a result. Ends like a step: the result is found, or the stage has to be resolved again, and then made.
pub(super) async fn ask(
    question: Question,
    remote: Arc<Remote>,
    store: Store,
    stop: watch::Receiver<StopSignal>,
    events: mpsc::UnboundedSender<(usize, StepEvent)>,
) -> (usize, StepEnd) {
    let index = question.index;
    let end = match take(question, &remote, &store, stop, &events).await {
        Ok(end) => end,
        // Whatever it is, making the stage meets it again, or does without.
        Err(_) => StepEnd::Requeue,
    };
    if let Some(message) = remote.take_warning() {
        drop(events.send((index, StepEvent::Stage(Event::Warning { message }))));
    }
    (index, end)
}

async fn take(
    question: Question,
    remote: &Arc<Remote>,
    store: &Store,
    mut stop: watch::Receiver<StopSignal>,
    events: &mpsc::UnboundedSender<(usize, StepEvent)>,
) -> Result<StepEnd, SchedulerError> {
    let (index, key) = (question.index, question.key);
    let send = |event| drop(events.send((index, event)));
    let _lock = tokio::select! {
        lock = store.lock(key, || send(StepEvent::Waiting)) => lock?,
        _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok(StepEnd::Cancelled),
    };
    if let Some(found) = look_up(store, key, &send).await? {
        return Ok(found);
    }
    let meter = Meter::default();
    let mut result = transfer(question, remote, store, &meter, events);
    let mut patience = Patience::new(remote);
    let pulled = loop {
        tokio::select! {
            ended = &mut result => break ended.unwrap_or(Err(Trouble::Stopped)),
            _ = stop.wait_for(|stop| *stop != StopSignal::None) => {
                remote.stop();
                return Ok(StepEnd::Cancelled);
            }
            () = sleep(TICK) => {}
        }
        let (done, total) = meter.read();
        if total > 0 {
            send(StepEvent::Stage(Event::Progress(Progress::new(done as usize, total as usize, BYTES))));
        }
        if patience.is_over((done, total), meter.is_busy_here()) {
            break Err(Trouble::Place("it does not answer".into()));
        }
    };
    match pulled {
        Ok(Pulled::Taken { bytes, objects }) => {
            send(StepEvent::Pulled { bytes, files: objects });
            Ok(look_up(store, key, &send).await?.unwrap_or(StepEnd::Requeue))
        }
        Ok(Pulled::Absent) => Ok(StepEnd::Requeue),
        Err(trouble) => {
            remote.note(&trouble);
            Ok(StepEnd::Requeue)
        }
    }
}

/// Takes a result in a thread of its own: the runtime would wait at its end for one that hangs.
fn transfer(
    question: Question,
    remote: &Arc<Remote>,
    store: &Store,
    meter: &Meter,
    events: &mpsc::UnboundedSender<(usize, StepEvent)>,
) -> oneshot::Receiver<Result<Pulled, Trouble>> {
    let (sender, result) = oneshot::channel();
    let (remote, store, meter, events) = (remote.clone(), store.clone(), meter.clone(), events.clone());
    thread::spawn(move || {
        let Question { index, key, manifest } = question;
        let begun = |bytes| drop(events.send((index, StepEvent::Pulling { bytes })));
        let pulled = remote.pull(&store, Want { key, manifest: Some(&manifest) }, &meter, &begun);
        drop(sender.send(pulled));
    });
    result
}

/// The result, if the store has it now.
async fn look_up(store: &Store, key: Digest, send: &impl Fn(StepEvent)) -> Result<Option<StepEnd>, SchedulerError> {
    let store = store.clone();
    let (found, mended) = tokio::task::spawn_blocking(move || Found::look_up(&store, None, key, false)).await??;
    if let Some(mended) = mended {
        send(StepEvent::Stage(Event::Warning { message: format!("{CHANGED}: {mended}") }));
    }
    Ok(match found {
        Found::Hit(hit, folder) => Some(StepEnd::Found(hit, folder)),
        Found::Miss(_) => None,
    })
}
