//! `imp-flow ask`.

use std::{process::ExitCode, time::Instant};

use imp_stages::ask::{self, Question};

use super::session::usage;
use crate::{
    cli::{AskArgs, Common},
    failure::Failure,
    pipeline::Diagnostic,
    report::{self, Answer},
};

/// Asks a model one question.
pub(crate) fn ask(args: &AskArgs, common: &Common) -> Result<ExitCode, Failure> {
    check(args)?;
    let question = Question {
        model: args.model.clone(),
        text: args.question.clone(),
        image: args.image.clone(),
        max_tokens: args.max_tokens as usize,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
    };
    let (start, mut text) = (Instant::now(), String::new());
    let answered = ask::ask(&question, |new| {
        text.push_str(new);
        report::part_of_answer(new, common.json);
    });
    let answered = answered.map_err(Failure::Stage)?;
    report::answer(
        &Answer { answered: &answered, text: &text, seconds: start.elapsed().as_secs_f64() },
        common.style(),
    );
    Ok(ExitCode::SUCCESS)
}

fn check(args: &AskArgs) -> Result<(), Failure> {
    let wrong = |message: &str| Err(usage(Diagnostic::new(message, None)));
    if !(0.0..=100.0).contains(&args.temperature) {
        return wrong("--temperature must be between 0 and 100");
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return wrong("--top-p must be above 0 and at most 1");
    }
    if args.question.trim().is_empty() {
        return wrong("the question is empty");
    }
    Ok(())
}
