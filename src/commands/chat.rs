//! `imp-flow chat`.

use std::{
    io::{self, IsTerminal},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use imp_stages::{
    StageError,
    ask::{self, Opened, read_image},
    conversation::{Conversation, Dialogue, Ended, Image, Manner, NoAnswer, Question, Sampling},
    place::hush_faults,
    speaker::Speaker,
};

use super::model;
use crate::{
    cli::{ChatArgs, Common},
    failure::Failure,
    pool,
    report::{self, Line, Lines, Style},
};

const HELP: &str = "\
/image FILE   show an image with the next question; several are possible
/reset        forget the conversation and its images
/help         this
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer. Any other line is a question.";

/// Talks with a model.
pub(crate) fn chat(args: &ChatArgs, common: &Common) -> Result<ExitCode, Failure> {
    args.answer.check()?;
    pool::join();
    hush_faults();
    let images = args.images.iter().map(|file| read_image(file)).collect::<Result<_, _>>().map_err(Failure::Stage)?;
    let model = model::find(&args.model, common)?;
    let Opened { speaker, cautions, .. } = ask::open(&model.path, args.answer.place()).map_err(Failure::Stage)?;
    let style = common.style();
    report::cautions(&cautions);
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && !style.json;
    let interrupt = Interrupt::default();
    let mut lines = Lines::Pipe;
    if is_terminal {
        let failed = |source| Failure::Io { what: "can't use the terminal".into(), source };
        interrupt.listen().map_err(failed)?;
        lines = Lines::of_terminal().map_err(failed)?;
        report::note(&format!("{}: ask something; /help tells what else there is", model.name), style);
    }
    let mut chat = Chat::new(&speaker, args, images, style);
    loop {
        let line = lines.next().map_err(|source| Failure::Io { what: "can't read a question".into(), source })?;
        let text = match line {
            Line::End => break,
            Line::Interrupted => {
                report::note("Ctrl-D or /quit leaves", style);
                continue;
            }
            Line::Text(text) => text,
        };
        match chat.on(&text, &interrupt) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(error) if is_terminal => report::trouble(&error),
            // A script must not go on as if it was answered.
            Err(error) => return Err(Failure::Stage(error)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    Nothing,
    Say(&'a str),
    Image(&'a str),
    Reset,
    Help,
    Quit,
    /// A command with words after it that it does not take.
    Surplus(&'a str),
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    fn read(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("", _) => Self::Nothing,
            ("/image", file) => Self::Image(file),
            ("/reset", "") => Self::Reset,
            ("/help", "") => Self::Help,
            ("/quit" | "/exit", "") => Self::Quit,
            ("/reset" | "/help" | "/quit" | "/exit", _) => Self::Surplus(word),
            // A path is no command.
            (word, _) if word.starts_with('/') && !word[1..].contains('/') => Self::Unknown(word),
            _ => Self::Say(line),
        }
    }
}

/// A conversation, and how it is shown.
struct Chat<'a> {
    speaker: &'a Speaker,
    conversation: Conversation<'a>,
    dialogue: Dialogue,
    /// Images that the next question will be about.
    images: Vec<Image>,
    manner: Manner,
    style: Style,
}

impl<'a> Chat<'a> {
    fn new(speaker: &'a Speaker, args: &ChatArgs, images: Vec<Image>, style: Style) -> Self {
        let sampling = Sampling {
            temperature: args.answer.temperature,
            top_p: args.answer.top_p,
            seed: args.seed,
            ..Sampling::default()
        };
        let manner = Manner { max_tokens: args.answer.max_tokens as usize, sampling, stop: Vec::new() };
        let dialogue = Dialogue { system: args.system.clone(), ..Dialogue::default() };
        Self { speaker, conversation: Conversation::new(speaker), dialogue, images, manner, style }
    }

    /// Does what a line asks for. `Break` ends the chat.
    fn on(&mut self, line: &str, interrupt: &Interrupt) -> Result<ControlFlow<()>, StageError> {
        match Command::read(line) {
            Command::Nothing => {}
            Command::Say(text) => self.say(text, interrupt)?,
            Command::Image(file) => self.show(file)?,
            Command::Reset => {
                self.dialogue.past.clear();
                self.images.clear();
                report::note("the conversation begins anew, without images", self.style);
            }
            Command::Help => report::note(HELP, self.style),
            Command::Quit => return Ok(ControlFlow::Break(())),
            Command::Surplus(word) => {
                return Err(StageError::failed(
                    format!("{word} takes nothing after it"),
                    format!("write {word} alone"),
                ));
            }
            Command::Unknown(word) => {
                return Err(StageError::failed(format!("there is no command {word}"), "/help lists them"));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn show(&mut self, file: &str) -> Result<(), StageError> {
        if file.is_empty() {
            return Err(StageError::failed("/image needs a file", "as in /image photo.jpg"));
        }
        self.images.push(read_image(&path(file))?);
        report::note("the next question is about this image", self.style);
        Ok(())
    }

    fn say(&mut self, text: &str, interrupt: &Interrupt) -> Result<(), StageError> {
        // If there is no answer, the images stay for another question, unless one of them is the reason.
        self.dialogue.asked = Question { images: self.images.clone(), text: text.into() };
        let json = self.style.json;
        interrupt.answering(true);
        let told = |part: &str| {
            report::part_of_answer(part, json);
            if interrupt.came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let reply = self.conversation.answer(&self.dialogue, &self.manner, told);
        interrupt.answering(false);
        let reply = reply.map_err(|error| self.failure(&error))?;
        report::reply(&reply, self.style);
        report::cautions(self.speaker.slowed().as_slice());
        if reply.ended == Ended::Interrupted && reply.text.is_empty() {
            // As if it was not asked: there is no answer that could be part of the conversation.
            return Ok(());
        }
        self.images.clear();
        self.dialogue.past.push((std::mem::take(&mut self.dialogue.asked), reply.text));
        Ok(())
    }

    fn failure(&mut self, error: &NoAnswer) -> StageError {
        let help = match error {
            NoAnswer::ContextFull { .. } if self.dialogue.past.is_empty() => {
                "ask a shorter question, or with fewer images"
            }
            NoAnswer::ContextFull { .. } => "this question was not asked: ask a shorter one, or /reset begins anew",
            NoAnswer::Image { .. } => {
                self.images.clear();
                "the images of this question are dropped: give some in PNG, JPEG, WebP, GIF, BMP or TIFF"
            }
            NoAnswer::TurnToken(_) => "write it in another way",
            NoAnswer::Interrupted => "ask again",
            NoAnswer::Plain => "finetune it on conversations; `imp-flow ask --image` has it write a caption",
            NoAnswer::Text(_) => "the model's tokenizer.json must be the one that it was trained with",
            NoAnswer::NotANumber(_) => "its training may have diverged: talk with an earlier model",
            NoAnswer::Device(error) => error.help().unwrap_or_default(),
        };
        StageError::failed(error.to_string(), help)
    }
}

/// The file that a user named, perhaps in quotes or in the own folder, as shells know it.
fn path(text: &str) -> PathBuf {
    let quoted = ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    let text = quoted.unwrap_or(text);
    match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => Path::new(text).to_path_buf(),
    }
}

/// Ctrl-C while an answer is computed: the first stops it, the second ends the program.
#[derive(Clone, Default)]
struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    const IDLE: u8 = 0;
    const ANSWERING: u8 = 1;
    const CAME: u8 = 2;

    fn answering(&self, is: bool) {
        self.0.store(if is { Self::ANSWERING } else { Self::IDLE }, Ordering::Relaxed);
    }

    fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::CAME
    }

    /// Listens in a thread of its own. What ends the program without being asked (SIGTERM, a closed terminal) still does.
    fn listen(&self) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut interrupts = {
            let _context = runtime.enter();
            signal(SignalKind::interrupt())?
        };
        let state = self.0.clone();
        std::thread::spawn(move || {
            while runtime.block_on(interrupts.recv()).is_some() {
                let came = state.compare_exchange(Self::ANSWERING, Self::CAME, Ordering::Relaxed, Ordering::Relaxed);
                if came == Err(Self::CAME) {
                    std::process::exit(130);
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_questions() {
        for (line, command) in [
            ("  \n", Command::Nothing),
            (" What is it? \n", Command::Say("What is it?")),
            ("/image my photo.png\n", Command::Image("my photo.png")),
            ("/image", Command::Image("")),
            ("/reset", Command::Reset),
            ("/help", Command::Help),
            ("/quit\n", Command::Quit),
            ("/exit", Command::Quit),
            ("/rest", Command::Unknown("/rest")),
            ("/reset now", Command::Surplus("/reset")),
            ("/etc/passwd is what?", Command::Say("/etc/passwd is what?")),
            ("1/2?", Command::Say("1/2?")),
        ] {
            assert_eq!(Command::read(line), command);
        }
        assert_eq!(path("'a b.png'"), Path::new("a b.png"));
        assert_eq!(path("a'b.png"), Path::new("a'b.png"));
    }
}
