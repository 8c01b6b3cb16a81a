//! A conversation up to where the model's next answer begins, in the text that training makes of the same turns. Independent of
//! tokens and of images' content.

use super::{
    CHATML_END, CHATML_START, PHI2_END, PHI3_ANSWER, PHI3_END, SYSTEM, Template, chatml_question, encoding::strip,
    phi3_question,
};

/// A question and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Round<'a> {
    /// The number of images that come before the question's text.
    pub images: usize,
    /// The question.
    pub question: &'a str,
    /// What the model has answered; `None` asks for it.
    pub answer: Option<&'a str>,
}

/// Stands for the text of a question while its template is written.
const SAID: &str = "\u{ffff}";

impl Template {
    /// The text of a conversation, cut into parts by its images: there is one part more than images. `system` replaces the
    /// template's own text. Images come first in their turn, each on a line of its own, as in training. `plain` has no
    /// conversations: one empty part.
    pub fn dialogue(self, system: Option<&str>, rounds: &[Round<'_>]) -> Vec<String> {
        let mut parts = vec![self.system(system.unwrap_or(SYSTEM))];
        for (number, round) in rounds.iter().enumerate() {
            let is_empty = round.images == 0 && round.question.is_empty();
            let asked = self.asked(is_empty, number == 0);
            let (before, after) = asked.split_once(SAID).unwrap_or((&asked, ""));
            push(&mut parts, before);
            let question = if round.images > 0 { strip(round.question) } else { round.question };
            for image in 1..=round.images {
                let is_end = image == round.images && question.is_empty();
                parts.push(if is_end { String::new() } else { "\n".into() });
            }
            push(&mut parts, question);
            push(&mut parts, after);
            if let Some(answer) = round.answer {
                push(&mut parts, &self.answered(answer));
            }
        }
        parts
    }

    fn system(self, text: &str) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Phi2 | Self::VicunaV1 => format!("{text} "),
            Self::Qwen2 => format!("{CHATML_START}system\n{text}{CHATML_END}\n"),
            Self::Phi3 => format!("<|system|>\n{text}{PHI3_END}"),
        }
    }

    /// The turn of a user, with [`SAID`] for its text, up to where the answer begins.
    fn asked(self, is_empty: bool, is_first: bool) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Phi2 | Self::VicunaV1 if is_empty => "USER:ASSISTANT:".into(),
            Self::Phi2 | Self::VicunaV1 => format!("USER: {SAID} ASSISTANT:"),
            Self::Qwen2 if is_first => chatml_question(SAID),
            Self::Qwen2 => format!("\n{}", chatml_question(SAID)),
            Self::Phi3 => phi3_question(SAID) + PHI3_ANSWER,
        }
    }

    /// An answer with its end.
    fn answered(self, answer: &str) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Phi2 | Self::VicunaV1 if answer.is_empty() => String::new(),
            Self::Phi2 | Self::VicunaV1 => format!(" {answer}{PHI2_END}"),
            Self::Qwen2 => format!("{answer}{CHATML_END}"),
            Self::Phi3 => format!("{answer}{PHI3_END}"),
        }
    }
}

fn push(parts: &mut [String], text: &str) {
    if let Some(last) = parts.last_mut() {
        last.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::super::{
            conversation::Turn,
            tests::{PHI2, PHI3, QWEN, Training, lines},
            tokenizer::{IMAGE_TEXT, TextTokenizer},
        },
        *,
    };

    /// The ids that the model has read when it begins the last of the answers in `turns`.
    fn prompt(template: Template, tokenizer: &TextTokenizer, turns: &[Turn], has_image: bool) -> Vec<i32> {
        let questions: Vec<(usize, String)> = turns
            .iter()
            .step_by(2)
            .map(|turn| {
                let images = if has_image { turn.value.matches(IMAGE_TEXT).count().min(1) } else { 0 };
                (images, if has_image { turn.value.replace(IMAGE_TEXT, "") } else { turn.value.clone() })
            })
            .collect();
        let answers = turns.iter().skip(1).step_by(2).map(|turn| turn.value.as_str());
        let last = questions.len() - 1;
        let rounds: Vec<Round<'_>> = questions
            .iter()
            .zip(answers)
            .enumerate()
            .map(|(number, ((images, question), answer))| Round {
                images: *images,
                question,
                answer: (number < last).then_some(answer),
            })
            .collect();
        let parts = template.dialogue(None, &rounds);
        tokenizer.encode_parts(parts.iter().map(String::as_str)).unwrap()
    }

    /// Training's tokens, of which the answer is what is learned: all rounds of all conversations in the fixtures, which the
    /// reference has made.
    #[test]
    fn the_tokens_before_each_answer_are_those_of_training() {
        for (file, template, tokenizer) in [
            ("phi2_sft.jsonl", Template::Phi2, &*PHI2),
            ("qwen1_5_sft.jsonl", Template::Qwen2, &*QWEN),
            ("phi3_sft.jsonl", Template::Phi3, &*PHI3),
            ("vicuna_v1_sft.jsonl", Template::VicunaV1, &*PHI3),
        ] {
            let (mut rounds, mut later) = (0, 0);
            for case in lines::<Training>(file) {
                let turns = &case.sample.conversations;
                // What a conversation never has: the model begins, an image in an answer, the tokens between turns in a turn.
                let is_odd = |turn: &Turn| template.turn_tokens().iter().any(|token| turn.value.contains(token));
                let said = turns.iter().skip(1).step_by(2).any(|turn| turn.value.contains(IMAGE_TEXT));
                if turns.first().is_none_or(|turn| turn.from != "human") || said || turns.iter().any(is_odd) {
                    continue;
                }
                let has_image = case.sample.image.is_some();
                for end in (2..=turns.len()).step_by(2) {
                    // White space before an answer may become one token with what is before it; no answer here has any.
                    if turns[end - 1].value.starts_with(char::is_whitespace) {
                        continue;
                    }
                    let Ok(whole) = template.encode(tokenizer, turns, has_image, usize::MAX) else { continue };
                    let prompt = prompt(template, tokenizer, &turns[..end], has_image);
                    assert_eq!(prompt, whole.input_ids[..prompt.len()], "{file} {} {end}", case.id);
                    let next: Vec<i32> = whole.input_ids[prompt.len()..].to_vec();
                    assert!(!next.is_empty());
                    if !whole.mismatched && !turns[end - 1].value.is_empty() {
                        let learned = whole.labels[prompt.len()..].iter().position(|label| *label != -100);
                        assert_eq!(learned, Some(0), "{file} {} {end}: the answer begins here", case.id);
                    }
                    rounds += 1;
                    later += usize::from(end > 2);
                }
            }
            assert!(rounds >= 12 && later >= 2, "{file}: {rounds} rounds, of which {later} are not the first");
        }
    }

    #[test]
    fn one_question_is_asked_as_everywhere_else() {
        for template in [Template::Phi2, Template::Qwen2, Template::Phi3, Template::VicunaV1] {
            let ask = |images, question| template.dialogue(None, &[Round { images, question, answer: None }]);
            assert_eq!(ask(1, "What is it?").join(IMAGE_TEXT), template.prompt("What is it?"));
            assert_eq!(ask(0, "What?"), [template.prompt_without_image("What?")]);
            assert_eq!(ask(2, "Which?").join(IMAGE_TEXT), template.prompt("<image>\nWhich?"));
            let system = template.dialogue(Some("Be brief."), &[Round { images: 0, question: "?", answer: None }]);
            assert!(system[0].contains("Be brief.") && !system[0].contains(SYSTEM));
        }
    }
}
