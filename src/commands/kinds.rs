//! `imp-flow kinds`.

use std::process::ExitCode;

use imp_stages::{
    KINDS, KindVisitor, Stage,
    contract::{input::Input, job::Runtime, keys::Key},
    visit,
};

use super::session::usage;
use crate::{failure::Failure, pipeline::Diagnostic, report};

struct Describe;

impl KindVisitor for Describe {
    type Output = (&'static str, &'static [Input], Vec<Key>);

    fn visit<S: Stage>(self) -> Self::Output {
        (S::ABOUT, S::INPUTS, S::keys())
    }
}

/// Lists the kinds of stages with their inputs, or shows one with its keys.
pub(crate) fn kinds(kind: Option<&str>) -> Result<ExitCode, Failure> {
    let Some(kind) = kind else {
        for kind in KINDS {
            if let Some((about, inputs, _)) = visit(kind, Describe) {
                report::kind(kind, about, inputs);
            }
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some((about, inputs, keys)) = visit(kind, Describe) else {
        let problem = Diagnostic::new(format!("unknown kind of stage `{kind}`"), None);
        return Err(usage(problem.suggest(kind, KINDS.iter().copied())));
    };
    report::kind(kind, about, inputs);
    report::keys("keys", &keys);
    report::keys("keys of its table `runtime`, which do not affect the result", &Runtime::all_keys());
    Ok(ExitCode::SUCCESS)
}
