//! Shows a run on a terminal: a progress bar for each running stage, and a line for each finished one.

use std::{collections::HashMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::{foreign::one_line, lines, print::print, reporter::Reporter, summary, units};
use crate::scheduler::RunEvent;

/// Bars on standard error, the final table on standard output.
pub(super) struct Console {
    bars: MultiProgress,
    running: HashMap<String, ProgressBar>,
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

    fn remove(&mut self, stage: &str) {
        if let Some(bar) = self.running.remove(stage) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    fn progress(&mut self, stage: &str, progress: &imp_stages::contract::event::Progress) {
        let Some(bar) = self.running.get(stage) else { return };
        if bar.length().is_none() && progress.total > 0 {
            bar.set_style(style(&progress.unit));
            bar.set_length(progress.total);
            // Work done before the stage was resumed does not count for its rate.
            bar.set_position(progress.done);
            bar.reset_eta();
        }
        bar.set_position(progress.done);
        bar.set_message(lines::values(progress));
    }
}

impl Reporter for Console {
    fn on(&mut self, event: &RunEvent<'_>) {
        match event {
            RunEvent::Running { stage, kind, resumed, .. } => {
                let bar = self.bars.add(ProgressBar::no_length().with_style(spinner()));
                bar.set_prefix((*stage).to_string());
                bar.set_message(if *resumed { format!("{kind}, resumed") } else { (*kind).to_string() });
                bar.enable_steady_tick(Duration::from_millis(120));
                self.running.insert((*stage).to_string(), bar);
            }
            RunEvent::State { stage, state } => {
                // Beside the bar, if there is one, until the next progress.
                if let Some(bar) = self.running.get(*stage) {
                    let gap = if bar.length().is_some() { "  " } else { "" };
                    bar.set_message(format!("{gap}{}", one_line(state)));
                }
            }
            RunEvent::Progress { stage, progress } => self.progress(stage, progress),
            RunEvent::Finished { stage, .. } | RunEvent::Failed { stage, .. } | RunEvent::Cancelled { stage } => {
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

fn spinner() -> ProgressStyle {
    parse("{spinner} {prefix:<18} {elapsed:>4}  {wide_msg}")
}

fn style(unit: &str) -> ProgressStyle {
    if unit == imp_stages::contract::event::BYTES {
        parse("{spinner} {prefix:<18} [{bar:24}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left{wide_msg}")
    } else {
        parse(&format!(
            "{{spinner}} {{prefix:<18}} [{{bar:24}}] {{pos}}/{{len}} {unit}, {{rate}}, {{eta}} left{{wide_msg}}"
        ))
    }
}

fn parse(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
        .with_key("rate", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            // Writing into a string can't fail.
            let _ = write!(to, "{}/s", units::figure(state.per_sec()));
        })
}
