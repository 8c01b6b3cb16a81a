//! Reads the file of events that a job appends to, perhaps on another machine. Independent of Slurm.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use imp_stages::contract::event::{Event, Progress};

use crate::executor::Outcome;

/// The longest event, in bytes: far above what stages write. What is longer is skipped.
const LONGEST: usize = 1 << 20;

/// How far the file was read, and what it said.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    at: u64,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
    /// Whether `partial` belongs to a line that is too long.
    skipping: bool,
    /// How the process that started last ended.
    pub(crate) ended: Option<Outcome>,
    /// The machine of the process that started last.
    pub(crate) host: Option<String>,
    /// Of the process that started last, by its own clock, in seconds since 1970.
    started: Option<f64>,
    finished: Option<f64>,
    pub(crate) progress: Option<Progress>,
}

impl Tail {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            at: 0,
            partial: Vec::new(),
            skipping: false,
            ended: None,
            host: None,
            started: None,
            finished: None,
            progress: None,
        }
    }

    /// How long the process that has ended took, in seconds.
    pub(crate) fn seconds(&self) -> Option<f64> {
        let (started, finished) = (self.started?, self.finished?);
        (finished >= started).then_some(finished - started)
    }

    /// Reads what is new. Of several reports of progress in a row, only the last is passed on.
    pub(crate) fn read(&mut self, on_event: &mut impl FnMut(Event)) -> io::Result<()> {
        // Opened each time: a network file system then looks for what other machines have written.
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.at))?;
        let mut buffer = vec![0; 1 << 16];
        let mut progress = None;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            self.at += read as u64;
            for part in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
                if let Some(event) = self.part(part) {
                    self.event(event, &mut progress, on_event);
                }
            }
        }
        if let Some(progress) = progress {
            on_event(Event::Progress(progress));
        }
        Ok(())
    }

    /// Adds a part of a line. Returns the event if the line is complete and is one.
    fn part(&mut self, part: &[u8]) -> Option<Event> {
        if self.partial.len() + part.len() > LONGEST {
            self.skipping = true;
            self.partial.clear();
        }
        if !self.skipping {
            self.partial.extend_from_slice(part);
        }
        if !part.ends_with(b"\n") {
            return None;
        }
        let line = std::mem::take(&mut self.partial);
        if std::mem::take(&mut self.skipping) {
            tracing::debug!("a line of {} is too long", self.path.display());
            return None;
        }
        let value: serde_json::Value = serde_json::from_slice(&line).ok()?;
        let at = value.get("at").and_then(serde_json::Value::as_f64);
        let event = serde_json::from_value(value).ok()?;
        match event {
            Event::Started { .. } => self.started = at,
            Event::Done => self.finished = at,
            _ => {}
        }
        Some(event)
    }

    fn event(&mut self, event: Event, progress: &mut Option<Progress>, on_event: &mut impl FnMut(Event)) {
        match event {
            Event::Progress(now) => {
                self.progress = Some(now.clone());
                *progress = Some(now);
            }
            Event::Done => self.ended = Some(Outcome::Done),
            Event::Cancelled => self.ended = Some(Outcome::Cancelled),
            Event::Failed { message, help, transient } => {
                self.ended = Some(Outcome::Failed { message, help, transient });
            }
            event => {
                if let Event::Started { host } = &event {
                    self.ended = None;
                    self.host = Some(host.clone());
                }
                progress.take().map(Event::Progress).into_iter().chain([event]).for_each(on_event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    /// Reads after each of these was appended. Returns the tail and what it passed on.
    fn read(appended: &[&[u8]]) -> (Tail, Vec<Event>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut tail = Tail::new(path.clone());
        let mut events = Vec::new();
        tail.read(&mut |event| events.push(event)).unwrap();
        assert!(events.is_empty(), "there is no file yet");
        let mut file = File::create(path).unwrap();
        for bytes in appended {
            file.write_all(bytes).unwrap();
            tail.read(&mut |event| events.push(event)).unwrap();
        }
        (tail, events)
    }

    fn step(done: usize) -> Event {
        Event::Progress(Progress::new(done, 9, "steps"))
    }

    const STARTED: &[u8] = b"{\"event\":\"started\",\"host\":\"n1\",\"at\":10.5}\n";

    #[test]
    fn half_a_line_waits_for_the_rest_and_garbage_is_skipped() {
        let (tail, events) = read(&[
            STARTED,
            b"{\"event\":\"peak_mem",
            b"ory\",\"bytes\":7}\n\xff\xfe\n\n{\"event\":\"unheard of\"}\n[1]\n",
            b"{\"event\":\"done\",\"at\":13}",
        ]);
        assert_eq!(events, [Event::Started { host: "n1".into() }, Event::PeakMemory { bytes: 7 }]);
        assert_eq!((tail.ended, tail.host.as_deref()), (None, Some("n1")), "its last line is not complete");
    }

    #[test]
    fn only_the_last_of_many_steps_is_passed_on() {
        let line = |done: usize| format!("{}\n", serde_json::to_string(&step(done)).unwrap());
        let warning = b"{\"event\":\"warning\",\"message\":\"w\"}\n";
        let (tail, events) =
            read(&[&[line(1), line(2)].concat().into_bytes(), &[line(3).as_bytes(), warning].concat()]);
        assert_eq!(events, [step(2), step(3), Event::Warning { message: "w".into() }]);
        assert_eq!(tail.progress, Some(Progress::new(3, 9, "steps")));
    }

    #[test]
    fn the_process_that_started_last_counts() {
        let done = b"{\"event\":\"done\",\"at\":12.0}\n";
        let (tail, _) = read(&[STARTED, b"{\"event\":\"cancelled\"}\n"]);
        assert_eq!(tail.ended, Some(Outcome::Cancelled));
        let (tail, _) = read(&[STARTED, b"{\"event\":\"cancelled\"}\n", STARTED]);
        assert_eq!(tail.ended, None);
        let (tail, _) = read(&[STARTED, b"{\"event\":\"cancelled\"}\n", STARTED, done]);
        assert_eq!((tail.seconds(), tail.ended), (Some(1.5), Some(Outcome::Done)));
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let long = vec![b'x'; 3 * LONGEST];
        let (tail, events) = read(&[&long, b"\n", b"{\"event\":\"peak_memory\",\"bytes\":7}\n"]);
        assert_eq!(events, [Event::PeakMemory { bytes: 7 }]);
        assert!(tail.partial.capacity() <= 2 * LONGEST);
    }
}
