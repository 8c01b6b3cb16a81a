//! Shows a run on a terminal: a line about the whole run, a progress bar for each running stage, and a line for each finished one.

use std::{collections::HashMap, time::Duration};

use imp_stages::contract::event::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    foreign::one_line,
    lines::{self, Rate},
    print::print,
    reporter::Reporter,
    summary,
};
use crate::scheduler::RunEvent;

/// Bars on standard error, the final table on standard output.
pub(super) struct Console {
    bars: MultiProgress,
    /// The line about the whole run, above the bars: a terminal too low for all bars cuts the last ones.
    whole: Option<ProgressBar>,
    /// Whether the terminal shows more than ASCII.
    unicode: bool,
    running: HashMap<String, (ProgressBar, Option<Rate>)>,
}

impl Console {
    /// `None` if standard error is not a terminal that can show bars: indicatif would drop every line.
    pub(super) fn new() -> Option<Self> {
        let bars = MultiProgress::new();
        (!bars.is_hidden()).then(|| Self { bars, whole: None, unicode: is_unicode(), running: HashMap::new() })
    }

    fn print(&self, event: &RunEvent<'_>) {
        if let Some(text) = lines::describe(event) {
            // indicatif ignores NO_COLOR.
            let plain = anstream::AutoStream::choice(&std::io::stderr()) == anstream::ColorChoice::Never;
            let text = if plain { anstream::adapter::strip_str(&text).to_string() } else { text };
            // Prints above the bars. Ignores errors, since a closed terminal must not end the run.
            let _ = self.bars.println(text);
        }
    }

    fn show(&mut self, stage: &str, what: &str, resumed: bool) {
        let bar = self.bars.add(ProgressBar::no_length().with_style(spinner(self.unicode)));
        bar.set_prefix(short(stage, self.unicode));
        bar.set_message(if resumed { format!("{what}, resumed") } else { what.to_string() });
        bar.enable_steady_tick(Duration::from_millis(120));
        self.running.insert(stage.to_string(), (bar, None));
    }

    fn show_whole(&mut self, text: String) {
        let new = || self.bars.insert(0, ProgressBar::no_length().with_style(parse("{wide_msg}", self.unicode)));
        self.whole.get_or_insert_with(new).set_message(text);
    }

    fn remove_whole(&mut self) {
        if let Some(whole) = self.whole.take() {
            whole.finish_and_clear();
            self.bars.remove(&whole);
        }
    }

    fn remove(&mut self, stage: &str) {
        if let Some((bar, _)) = self.running.remove(stage) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    fn progress(&mut self, stage: &str, progress: &Progress) {
        let Some((bar, rate)) = self.running.get_mut(stage) else { return };
        if bar.length().is_none() && progress.total > 0 {
            bar.set_style(bar_style(self.unicode));
            bar.set_length(progress.total);
        }
        bar.set_position(progress.done);
        // Not indicatif's rate, which takes the work before a resume for work of this moment.
        bar.set_message(rate.get_or_insert_with(|| Rate::new(progress.done)).describe(progress));
    }
}

impl Reporter for Console {
    fn shows_outlook(&self) -> bool {
        true
    }

    fn on(&mut self, event: &RunEvent<'_>) {
        match event {
            RunEvent::Pulling { stage, .. } => {
                self.show(stage, "pulling", false);
            }
            // A run of one stage has no more to say than the stage's bar.
            RunEvent::Outlook { done, stages, seconds, untimed } if *stages > 1 => {
                self.show_whole(lines::outlook(*done, *stages, *seconds, *untimed));
            }
            RunEvent::Sending { results, done, total, .. } => {
                self.remove_whole();
                // No stage has this name.
                if !self.running.contains_key("") {
                    self.show("", "", false);
                }
                if let Some((bar, _)) = self.running.get("") {
                    bar.set_message(lines::sending(*results, *done, *total));
                }
            }
            RunEvent::Remote(_) => {
                self.remove("");
                self.print(event);
            }
            RunEvent::Running { stage, kind, resumed, .. } => {
                // That of a pull that came to nothing.
                self.remove(stage);
                self.show(stage, kind, *resumed);
            }
            RunEvent::State { stage, state } => {
                // Beside the bar, if there is one, until the next progress.
                if let Some((bar, _)) = self.running.get(*stage) {
                    bar.set_message(one_line(state));
                }
            }
            RunEvent::Progress { stage, progress } => self.progress(stage, progress),
            RunEvent::Pulled { stage, .. }
            | RunEvent::Finished { stage, .. }
            | RunEvent::Failed { stage, .. }
            | RunEvent::Cancelled { stage } => {
                self.remove(stage);
                self.print(event);
            }
            RunEvent::Ended { summary } => {
                self.remove_whole();
                let _ = self.bars.clear();
                print(&summary::summary(summary));
            }
            _ => self.print(event),
        }
    }
}

/// The most characters of a stage's name beside its bar.
const NAME: usize = 18;

/// The end of a long name: that of a point of a sweep begins like all others.
fn short(name: &str, unicode: bool) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_string();
    }
    let cut = if unicode { '\u{2026}' } else { '~' };
    std::iter::once(cut).chain(name.chars().skip(length + 1 - NAME)).collect()
}

fn spinner(unicode: bool) -> ProgressStyle {
    parse("{spinner} {prefix:<18} {elapsed:>4}  {wide_msg}", unicode)
}

/// What does not fit on the line is cut from the end of the message.
fn bar_style(unicode: bool) -> ProgressStyle {
    parse("{spinner} {prefix:<18} [{bar:10}] {wide_msg}", unicode)
}

fn parse(template: &str, unicode: bool) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.progress_chars("=> ");
    if unicode { style } else { style.tick_chars("|/-\\ ") }
}

/// Whether the locale says that the terminal is one of UTF-8.
fn is_unicode() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default().to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(short("finetune", true), "finetune");
        assert_eq!(short("lora_rank=64/finetune", true).chars().count(), NAME);
        assert!(short("lora_rank=64/finetune", true).ends_with("=64/finetune"));
        assert_eq!(short("lora_rank=64/finetune", false), "~_rank=64/finetune");
    }
}
