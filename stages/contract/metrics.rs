//! The metrics of a stage by step, twice: as JSON lines, and for TensorBoard. Independent of what they measure.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{error::StageError, tensorboard::EventFile};

/// A line of the file.
type Line = serde_json::Map<String, serde_json::Value>;

/// The longest line, in bytes: far above what [`Metrics::add`] writes.
const LONGEST_LINE: u64 = 1 << 20;

/// Open files of metrics.
pub(super) struct Metrics {
    lines: File,
    events: EventFile,
}

impl Metrics {
    /// Opens the file of `lines` and drops those after `last_step`, and everything from a line on that can't be read, which it tells.
    /// The file of `events` is rewritten from the rest.
    pub(super) fn open(lines: &Path, events: &Path, last_step: u64) -> Result<(Self, bool), StageError> {
        let (length, kept, is_cut) = match File::open(lines) {
            Ok(file) => lines_up_to(BufReader::new(file), last_step).map_err(StageError::io(lines))?,
            Err(error) if error.kind() == ErrorKind::NotFound => (0, Vec::new(), false),
            Err(error) => return Err(StageError::io(lines)(error)),
        };
        let file = OpenOptions::new().create(true).append(true).open(lines).map_err(StageError::io(lines))?;
        file.set_len(length).map_err(StageError::io(lines))?;
        let replay = || {
            let mut events = EventFile::create(events)?;
            kept.iter().try_for_each(|line| add_event(&mut events, line))?;
            Ok(events)
        };
        let events = replay().map_err(StageError::io(events))?;
        Ok((Self { lines: file, events }, is_cut))
    }

    /// Adds the values of a step.
    pub(super) fn add(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let mut line = Line::new();
        line.insert("step".into(), step.into());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |passed| passed.as_secs_f64());
        line.insert("time".into(), now.into());
        line.extend(values.iter().map(|(name, value)| ((*name).to_string(), serde_json::json!(value))));
        add_event(&mut self.events, &line)?;
        self.lines.write_all(format!("{}\n", serde_json::Value::Object(line)).as_bytes())
    }
}

fn add_event(events: &mut EventFile, line: &Line) -> io::Result<()> {
    let number = |name: &str| line.get(name).and_then(serde_json::Value::as_f64);
    let figures = line.iter().filter(|(name, _)| !matches!(name.as_str(), "step" | "time"));
    let figures = figures.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)));
    events.add(number("step").unwrap_or_default() as u64, number("time").unwrap_or_default(), figures)
}

/// The whole lines whose step is at most `last_step`, their length in bytes, and whether a damaged line follows.
fn lines_up_to(mut reader: impl BufRead, last_step: u64) -> io::Result<(u64, Vec<Line>, bool)> {
    // Bytes, not text: after a crash, a line may hold anything.
    let (mut length, mut kept, mut bytes) = (0, Vec::new(), Vec::new());
    while reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes)? > 0 {
        let line = serde_json::from_slice::<Line>(&bytes).ok().filter(|_| bytes.ends_with(b"\n"));
        let step = |line: &Line| line.get("step").and_then(serde_json::Value::as_u64);
        let Some((line, step)) = line.and_then(|line| step(&line).map(|step| (line, step))) else {
            return Ok((length, kept, true));
        };
        if step > last_step {
            break;
        }
        length += bytes.len() as u64;
        kept.push(line);
        bytes.clear();
    }
    Ok((length, kept, false))
}
