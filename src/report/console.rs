//! Shows a run on a terminal: a progress bar for each running stage, and a line for each finished one.

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
    running: HashMap<String, (ProgressBar, Option<Rate>)>,
}

impl Console {
    /// `None` if standard error is not a terminal that can show bars: indicatif would drop every line.
    pub(super) fn new() -> Option<Self> {
        let bars = MultiProgress::new();
        (!bars.is_hidden()).then(|| Self { bars, running: HashMap::new() })
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
        let bar = self.bars.add(ProgressBar::no_length().with_style(spinner()));
        bar.set_prefix(short(stage));
        bar.set_message(if resumed { format!("{what}, resumed") } else { what.to_string() });
        bar.enable_steady_tick(Duration::from_millis(120));
        self.running.insert(stage.to_string(), (bar, None));
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
            bar.set_style(bar_style());
            bar.set_length(progress.total);
        }
        bar.set_position(progress.done);
        // Not indicatif's rate, which takes the work before a resume for work of this moment.
        bar.set_message(rate.get_or_insert_with(|| Rate::new(progress.done)).describe(progress));
    }
}

impl Reporter for Console {
    fn on(&mut self, event: &RunEvent<'_>) {
        match event {
            RunEvent::Pulling { stage, .. } => {
                self.show(stage, "pulling", false);
            }
            RunEvent::Sending { results, done, total, .. } => {
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
fn short(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_string();
    }
    std::iter::once('\u{2026}').chain(name.chars().skip(length + 1 - NAME)).collect()
}

fn spinner() -> ProgressStyle {
    parse("{spinner} {prefix:<18} {elapsed:>4}  {wide_msg}")
}

/// What does not fit on the line is cut from the end of the message.
fn bar_style() -> ProgressStyle {
    parse("{spinner} {prefix:<18} [{bar:10}] {wide_msg}")
}

fn parse(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(short("finetune"), "finetune");
        assert_eq!(short("lora_rank=64/finetune").chars().count(), NAME);
        assert!(short("lora_rank=64/finetune").ends_with("=64/finetune"));
    }
}
