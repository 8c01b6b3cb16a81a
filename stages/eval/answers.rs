//! Answer and question files in LLaVA's formats, mostly one JSON object per line. Independent of where answers come from.

use std::{collections::HashMap, path::Path};

use serde::Deserialize;
use serde_json::json;

use super::{
    files::Text,
    question::{Id, Mark, Question, duplicate_id},
};
use crate::{
    StageError,
    contract::answers::{AnswerLine, AnswerMetadata},
    text::tokenizer::IMAGE_TEXT,
};

/// Writes `answers.jsonl` like LLaVA's evaluation scripts, except that answer ids are reproducible, and `metadata` has more.
/// `image_of` names the image that the model saw.
pub(super) fn write(
    path: &Path,
    questions: &[Question],
    answers: &[String],
    marks: &[Mark],
    image_of: &dyn Fn(&Question) -> Option<String>,
) -> Result<(), StageError> {
    let mut lines = String::new();
    for ((question, text), mark) in questions.iter().zip(answers).zip(marks) {
        let line = AnswerLine {
            question_id: json!(question.id),
            prompt: question.prompt.clone(),
            text: text.clone(),
            answer_id: question.id.to_string(),
            model_id: "imp".into(),
            metadata: AnswerMetadata {
                category: question.category.clone(),
                image: image_of(question),
                truth: mark.truth.clone(),
                score: mark.score,
            },
        };
        lines += &json!(line).to_string();
        lines.push('\n');
    }
    std::fs::write(path, lines).map_err(StageError::io(path))
}

/// A line of an answer file, where `prompt` is the question, or of a question file, where `text` is.
#[derive(Debug, Deserialize)]
struct Line {
    question_id: Id,
    #[serde(default)]
    prompt: Option<String>,
    text: String,
    /// Whether what LLaVA's script adds to the question is not in the text.
    #[serde(skip)]
    is_bare: bool,
}

/// A record of LLaVA's question file for `ScienceQA`, an array of conversations.
#[derive(Debug, Deserialize)]
struct Conversation {
    id: Id,
    conversations: Vec<Turn>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    value: String,
}

impl Conversation {
    /// The question, without the image's token: images always come first, whatever the text says.
    fn line(self) -> Line {
        let question = self.conversations.into_iter().next().map(|turn| turn.value).unwrap_or_default();
        let text = question.replace(IMAGE_TEXT, "").trim().into();
        Line { question_id: self.id, prompt: None, text, is_bare: true }
    }
}

/// An id without the extension of an image: if ids are image names, some files have the extension and some do not.
fn without_extension(id: &Id) -> Id {
    match id {
        Id::Number(number) => Id::Number(*number),
        Id::Text(text) => {
            let end = [".jpg", ".png", ".jpeg"].iter().find_map(|ending| text.strip_suffix(ending));
            Id::Text(end.unwrap_or(text).into())
        }
    }
}

/// The lines of several files, to be matched with questions: by id and, if several questions have the same id, by the first
/// line of the question, which the line must contain.
struct Matched {
    lines: HashMap<Id, Vec<(usize, usize, Line)>>,
}

impl Matched {
    fn read(texts: &[Text]) -> Result<Self, StageError> {
        let mut lines: HashMap<Id, Vec<(usize, usize, Line)>> = HashMap::new();
        for (file, text) in texts.iter().enumerate() {
            // LLaVA's file for `ScienceQA` is an array of conversations.
            let read: Vec<(usize, Line)> =
                if text.text.trim_start().starts_with('[') && text.text.contains("\"conversations\"") {
                    let conversations = text.json_lines::<Conversation>()?;
                    conversations.into_iter().map(|(number, conversation)| (number, conversation.line())).collect()
                } else {
                    text.json_lines()?
                };
            for (number, line) in read {
                lines.entry(without_extension(&line.question_id)).or_default().push((file, number, line));
            }
        }
        Ok(Self { lines })
    }

    /// Removes and returns the line that matches `question`.
    fn take(&mut self, question: &Question) -> Option<Line> {
        let lines = self.lines.get_mut(&without_extension(&question.id))?;
        let first_line = question.prompt.lines().next().unwrap_or_default().to_lowercase();
        let fits = |line: &Line| line.prompt.as_ref().unwrap_or(&line.text).to_lowercase().contains(&first_line);
        let at = match lines.as_slice() {
            [_] => 0,
            many => many.iter().position(|(_, _, line)| fits(line))?,
        };
        Some(lines.remove(at).2)
    }

    /// The first line that no question has taken, if any: its file, its number and its id.
    fn unmatched(&self) -> Option<(usize, usize, &Id)> {
        let left = self.lines.values().flatten().map(|(file, number, line)| (*file, *number, &line.question_id));
        left.min_by_key(|(file, number, _)| (*file, *number))
    }
}

/// Reads the answers to `questions` from answer files that together have exactly one for each.
///
/// # Errors
/// Names the question that has no answer, or two.
pub(super) fn read(texts: &[Text], questions: &[Question]) -> Result<Vec<String>, StageError> {
    let mut matched = Matched::read(texts)?;
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        let Some(line) = matched.take(question) else {
            let files: Vec<String> = texts.iter().map(|text| text.named.display().to_string()).collect();
            let message = format!("there is no answer to question {}", question.id);
            let help = "give the answers of all shards, to the same questions";
            return Err(StageError::input(files.join(", "), message, help));
        };
        answers.push(line.text);
    }
    match matched.unmatched() {
        None => Ok(answers),
        Some((file, line, id))
            if questions.iter().any(|question| without_extension(&question.id) == without_extension(id)) =>
        {
            Err(duplicate_id(&texts[file].named, id).at_line(line))
        }
        Some((file, line, id)) => {
            let message = format!("question {id} is not in the benchmark");
            let help = "give answers to the same questions, made with the same `limit`";
            Err(StageError::input(&texts[file].named, message, help).at_line(line))
        }
    }
}

/// Replaces the questions' prompts by those of a question file in LLaVA's format. `suffix` is added where LLaVA's script adds it.
///
/// # Errors
/// Names a question that the file lacks.
pub(super) fn reword(questions: &mut [Question], text: &Text, suffix: &str) -> Result<(), StageError> {
    let mut matched = Matched::read(std::slice::from_ref(text))?;
    for question in questions {
        let line = matched.take(question).ok_or_else(|| text.error(format!("question {} is missing", question.id)))?;
        question.prompt = line.text;
        if line.is_bare && !question.prompt.ends_with(suffix.trim()) {
            question.prompt.push_str(suffix);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn questions() -> Vec<Question> {
        let question =
            |id: &str, prompt: &str| Question::new(id.into(), "image".into(), format!("{prompt}\nBe short."));
        vec![question("a", "Is it red?"), question("a", "Is it blue?"), question("b", "What is it?")]
    }

    fn file(lines: &[(&str, &str, &str)]) -> Text {
        let line = |(id, prompt, text): &(&str, &str, &str)| {
            json!({"question_id": id, "prompt": prompt, "text": text, "answer_id": "x"}).to_string()
        };
        Text { text: lines.iter().map(line).collect::<Vec<_>>().join("\n"), named: "answers".into() }
    }

    #[test]
    fn answers_find_their_questions_in_any_order() {
        let first = file(&[("b", "anything", "1"), ("a", "IS IT BLUE?\nx", "2")]);
        let second = file(&[("a", "Is it red?", "3")]);
        assert_eq!(read(&[first, second], &questions()).unwrap(), ["3", "2", "1"]);
    }

    #[test]
    fn numbers_and_strings_are_the_same_ids() {
        let asked =
            [Question::new(Id::Number(1), "i".into(), "?".into()), Question::new("2".into(), "i".into(), "?".into())];
        let lines = r#"{"question_id": "1", "text": "a"}"#.to_string() + "\n" + r#"{"question_id": 2, "text": "b"}"#;
        let array = format!("[{}]", lines.replace('\n', ","));
        for text in [lines, array] {
            assert_eq!(read(&[Text { text, named: "answers".into() }], &asked).unwrap(), ["a", "b"]);
        }
    }

    #[test]
    fn missing_and_repeated_answers_are_named() {
        let whole = [("a", "Is it red?", "1"), ("a", "Is it blue?", "2"), ("b", "What is it?", "3")];
        let with = |more: (&'static str, &'static str, &'static str)| [whole.as_slice(), &[more]].concat();
        for (lines, words) in [
            (whole[..2].to_vec(), "answers: there is no answer to question b"),
            (vec![whole[0], whole[2]], "answers: there is no answer to question a"),
            (with(("b", "What is it?", "3")), "answers:4: the question id b occurs twice"),
            (with(("c", "What?", "3")), "answers:4: question c is not in the benchmark"),
        ] {
            let error = read(&[file(&lines)], &questions()).unwrap_err();
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn a_question_file_gives_the_prompts() {
        let text = |lines: &[&str]| Text { text: lines.join("\n"), named: "llava.jsonl".into() };
        let lines = [
            r#"{"question_id": "a", "image": "x", "text": "Is it blue?\nAnswer yes or no."}"#,
            r#"{"question_id": "a", "image": "x", "text": "Is it red?\nAnswer yes or no."}"#,
            r#"{"question_id": "b", "image": "x", "text": "What is that?"}"#,
        ];
        let mut asked = questions();
        reword(&mut asked, &text(&lines), "\nBe short.").unwrap();
        let prompts: Vec<&str> = asked.iter().map(|question| question.prompt.as_str()).collect();
        assert_eq!(prompts, ["Is it red?\nAnswer yes or no.", "Is it blue?\nAnswer yes or no.", "What is that?"]);
        let conversations =
            r#"[{"id": "b", "conversations": [{"from": "human", "value": "<image>\nWell?"}], "image": "x"}]"#;
        reword(&mut asked[2..], &text(&[conversations]), "\nBe short.").unwrap();
        assert_eq!(asked[2].prompt, "Well?\nBe short.", "LLaVA's script adds it to this file, and to no other");
        let error = reword(&mut questions(), &text(&lines[..2]), "").unwrap_err();
        assert_eq!(error.to_string(), "llava.jsonl: question b is missing");
    }
}
