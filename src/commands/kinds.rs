//! `imp-flow kinds`.

use std::process::ExitCode;

use clap::CommandFactory;
use imp_stages::{
    KINDS, KindVisitor, Stage,
    contract::{input::Input, job::Runtime, keys::Key},
    visit,
};

use super::session::usage;
use crate::{
    cli::{Cli, Common},
    failure::Failure,
    pipeline::Diagnostic,
    report,
};

struct Describe;

impl KindVisitor for Describe {
    type Output = (&'static str, &'static [Input], Vec<Key>);

    fn visit<S: Stage>(self) -> Self::Output {
        (S::ABOUT, S::INPUTS, S::keys())
    }
}

/// Lists the kinds of stages with their inputs, or shows one with its keys.
pub(crate) fn kinds(kind: Option<&str>, common: &Common) -> Result<ExitCode, Failure> {
    if common.json {
        return kinds_as_json(kind);
    }
    let Some(kind) = kind else {
        for kind in KINDS {
            if let Some((about, inputs, _)) = visit(kind, Describe) {
                report::kind(kind, about, inputs);
            }
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (about, inputs, keys) = visit(kind, Describe).ok_or_else(|| unknown(kind))?;
    report::kind(kind, about, inputs);
    report::keys("keys", &keys);
    report::keys("keys of its table `runtime`, which do not affect the result", &Runtime::all_keys());
    Ok(ExitCode::SUCCESS)
}

fn unknown(kind: &str) -> Failure {
    let problem = Diagnostic::new(format!("unknown kind of stage `{kind}`"), None);
    usage(problem.suggest(kind, KINDS.iter().copied()))
}

/// One kind or all of them, each with all its keys.
fn kinds_as_json(kind: Option<&str>) -> Result<ExitCode, Failure> {
    let runtime = Runtime::all_keys();
    for kind in kind.map_or_else(|| KINDS.to_vec(), |kind| vec![kind]) {
        let (about, inputs, keys) = visit(kind, Describe).ok_or_else(|| unknown(kind))?;
        report::kind_as_json(kind, about, inputs, &keys, &runtime);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the JSON Schema of pipeline files.
pub(crate) fn schema() -> ExitCode {
    let kinds = KINDS.iter().filter_map(|kind| {
        let (about, inputs, keys) = visit(kind, Describe)?;
        Some(report::KindKeys { kind, about, inputs, keys })
    });
    report::schema(&kinds.collect::<Vec<_>>(), &Runtime::all_keys());
    ExitCode::SUCCESS
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "imp-flow", &mut script);
    report::print_raw(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
