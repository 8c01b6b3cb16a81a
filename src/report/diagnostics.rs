//! Shows why a verb ended early, with the line of the user's file if there is one.

use std::process::ExitCode;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{foreign::one_line, print::eprint, style::BAD};
use crate::{
    failure::Failure,
    pipeline::{Diagnostic, Sources},
    store::StoreError,
};

/// The most errors to show: each is rendered with its file, and a reader fixes the first ones first.
const SHOWN: usize = 20;

/// Shows a failure and returns its exit code.
pub(crate) fn failure(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Usage { problems, sources } => {
            for problem in problems.iter().take(SHOWN) {
                eprint(&render(problem, sources));
            }
            match problems.len().saturating_sub(SHOWN) {
                0 => {}
                1 => eprint(&format!("{BAD}error:{BAD:#} 1 more error is not shown")),
                more => eprint(&format!("{BAD}error:{BAD:#} {more} more errors are not shown")),
            }
        }
        Failure::Settings(message) => eprint(&format!("{BAD}error:{BAD:#} {message}")),
        // About a file, which may be the user's own.
        Failure::Store(error @ StoreError::Refused { .. }) => eprint(&format!("{BAD}error:{BAD:#} {error}")),
        Failure::Store(error) => eprint(&format!("{BAD}error:{BAD:#} can't use the cache: {error}")),
        Failure::Scheduler(error) => eprint(&format!("{BAD}error:{BAD:#} {error}")),
        Failure::Stage(error) => {
            let help = error.help().map(|help| format!("\n  help: {help}")).unwrap_or_default();
            eprint(&format!("{BAD}error:{BAD:#} {}{help}", one_line(&error.to_string())));
        }
        Failure::Remote { address, what } => {
            let (address, what) = (one_line(address), one_line(what));
            eprint(&format!("{BAD}error:{BAD:#} the remote cache {address} can't be used: {what}"));
        }
        Failure::Io { what, source } => eprint(&format!("{BAD}error:{BAD:#} {what}: {source}")),
    }
    failure.exit_code()
}

fn render(problem: &Diagnostic, sources: &Sources) -> String {
    let Some(span) = &problem.span else {
        let help = problem.help.as_ref().map(|help| format!("\n  help: {help}")).unwrap_or_default();
        return format!("{BAD}error:{BAD:#} {}{help}", problem.message);
    };
    let path = sources.path(span.file).display().to_string();
    let annotation = AnnotationKind::Primary.span(span.range.clone()).label(problem.label.as_str());
    let snippet = Snippet::source(sources.text(span.file)).path(path.as_str()).annotation(annotation);
    let mut group = Group::with_title(Level::ERROR.primary_title(problem.message.as_str())).element(snippet);
    if let Some(help) = &problem.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    // `eprint` removes the colours if the terminal does not support them or the user has disabled them.
    Renderer::styled().render(&[group])
}
