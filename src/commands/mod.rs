//! One verb per file. The only layer that combines pipeline, store, scheduler and report.

mod ask;
mod cache;
mod card;
mod chat;
mod compare;
mod detach;
mod diff;
mod doctor;
mod export;
mod fast_path;
mod gpus;
mod graph;
mod import;
mod init;
mod kinds;
mod log;
mod man;
mod model;
mod on_end;
mod origin;
mod page;
mod plan;
mod push;
mod record;
mod remote;
mod report;
mod run;
mod runs;
mod serve;
mod session;
mod show;
mod status;
mod study;
mod watch;
mod why;

use std::path::PathBuf;

pub(crate) use ask::ask;
pub(crate) use cache::cache;
pub(crate) use chat::chat;
pub(crate) use compare::compare;
pub(crate) use diff::diff;
pub(crate) use doctor::doctor;
pub(crate) use export::export;
pub(crate) use graph::graph;
pub(crate) use import::import_llava;
pub(crate) use init::init;
pub(crate) use kinds::{completions, kinds, schema};
pub(crate) use log::log;
pub(crate) use man::man;
pub(crate) use page::page;
pub(crate) use plan::plan;
pub(crate) use push::push;
pub(crate) use remote::pull;
pub(crate) use report::report_eval;
pub(crate) use run::run;
pub(crate) use runs::runs;
pub(crate) use serve::serve;
pub(crate) use show::show;
pub(crate) use status::status;
pub(crate) use study::report_study;
pub(crate) use watch::watch;
pub(crate) use why::why;

use crate::{
    cli::{Common, SelectArgs, TargetArgs},
    report::Style,
    scheduler::Names,
};

impl Common {
    /// The flags that reports depend on.
    fn style(&self) -> Style {
        Style { json: self.json, quiet: self.quiet }
    }
}

impl TargetArgs {
    /// With a file that was given as an argument.
    pub(crate) fn or_file(self, file: Option<PathBuf>) -> Self {
        Self { file: self.file.or(file), ..self }
    }
}

impl SelectArgs {
    fn names(&self) -> Names<'_> {
        Names { only: &self.only, until: &self.until, from: &self.from, force: &self.force }
    }
}
