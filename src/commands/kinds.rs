//! `imp-flow kinds`.

use std::process::ExitCode;

use imp_stages::{KINDS, KindVisitor, Stage, contract::input::Input, visit};

use crate::{failure::Failure, report};

struct Describe;

impl KindVisitor for Describe {
    type Output = (&'static str, &'static [Input]);

    fn visit<S: Stage>(self) -> Self::Output {
        (S::ABOUT, S::INPUTS)
    }
}

/// Lists the kinds of stages with their inputs.
#[expect(clippy::unnecessary_wraps, reason = "every verb has this signature")]
pub(crate) fn kinds() -> Result<ExitCode, Failure> {
    for kind in KINDS {
        if let Some((about, inputs)) = visit(kind, Describe) {
            report::kind(kind, about, inputs);
        }
    }
    Ok(ExitCode::SUCCESS)
}
