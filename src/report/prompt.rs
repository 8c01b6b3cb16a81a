//! Where the questions of `imp-flow chat` come from: a terminal, with editing and a history, or the lines of a file or pipe.
//! Independent of what they say.

use std::io::{self, BufRead, Read};

use rustyline::{Config, Editor, error::ReadlineError, history::MemHistory};

/// Longest line in bytes that is read: no model reads as much.
const LONGEST: u64 = 1 << 20;
/// What a terminal shows where a question is expected.
const PROMPT: &str = "> ";

/// What comes next.
pub(crate) enum Line {
    Text(String),
    /// Ctrl-C where a question is expected.
    Interrupted,
    /// Ctrl-D, or the end of the file.
    End,
}

/// The source of lines.
pub(crate) enum Lines {
    /// A terminal. Its history is kept in memory only.
    Terminal(Box<Editor<(), MemHistory>>),
    Pipe,
}

impl Lines {
    /// The lines of a terminal.
    pub(crate) fn of_terminal() -> io::Result<Self> {
        let config = Config::builder().auto_add_history(true).build();
        let editor = Editor::with_history(config, MemHistory::new()).map_err(io_error)?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// Waits for the next line.
    pub(crate) fn next(&mut self) -> io::Result<Line> {
        match self {
            Self::Terminal(editor) => match editor.readline(PROMPT) {
                Ok(text) => Ok(Line::Text(text)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(io_error(error)),
            },
            Self::Pipe => {
                let mut bytes = Vec::new();
                let count = io::stdin().lock().take(LONGEST + 1).read_until(b'\n', &mut bytes)?;
                if count as u64 > LONGEST {
                    return Err(io::Error::other(format!("a line is longer than {LONGEST} bytes")));
                }
                let text = String::from_utf8(bytes).map_err(|_| io::Error::other("a line is not in UTF-8"))?;
                Ok(if count == 0 { Line::End } else { Line::Text(text) })
            }
        }
    }
}

fn io_error(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        error => io::Error::other(error.to_string()),
    }
}
