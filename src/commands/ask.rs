//! `imp-flow ask`.

use std::{process::ExitCode, time::Instant};

use imp_stages::{
    ask::{self, Question},
    place::hush_faults,
};

use super::{model, session::usage};
use crate::{
    cli::{AskArgs, Common},
    failure::Failure,
    pipeline::Diagnostic,
    pool,
    report::{self, Answer},
};

/// Asks a model one question.
pub(crate) fn ask(args: &AskArgs, common: &Common) -> Result<ExitCode, Failure> {
    args.answer.check()?;
    if args.question.trim().is_empty() {
        return Err(usage(Diagnostic::new("the question is empty", None)));
    }
    pool::join();
    hush_faults();
    let question = Question {
        model: model::find(&args.model, common)?.path,
        text: args.question.clone(),
        image: args.image.clone(),
        max_tokens: args.answer.max_tokens as usize,
        temperature: args.answer.temperature,
        top_p: args.answer.top_p,
        seed: args.seed,
        place: args.answer.place(),
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
