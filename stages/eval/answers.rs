//! Files in LLaVA's formats, a JSON object a line: answers (those that the stage leaves, and those of others), and question
//! files. Does not know who answers.

use std::{collections::HashMap, path::Path};

use serde::Deserialize;
use serde_json::json;

use super::{
    files::Text,
    question::{Id, Question, twice},
};
use crate::{StageError, text::tokenizer::IMAGE_TEXT};

/// Writes `answers.jsonl` as LLaVA's evaluation scripts do, but with ids that are the same every time.
pub(super) fn write(path: &Path, questions: &[Question], answers: &[String]) -> Result<(), StageError> {
    let mut lines = String::new();
    for (question, text) in questions.iter().zip(answers) {
        let metadata = match question.category.as_str() {
            "" => json!({}),
            category => json!({"category": category}),
        };
        let line = json!({
            "question_id": question.id, "prompt": question.prompt, "text": text,
            "answer_id": question.id.to_string(), "model_id": "imp", "metadata": metadata,
        });
        lines += &line.to_string();
        lines.push('\n');
    }
    std::fs::write(path, lines).map_err(StageError::io(path))
}

/// A line of an answer file: `prompt` is the question. Of a question file: `text` is.
#[derive(Debug, Deserialize)]
struct Line {
    question_id: Id,
    #[serde(default)]
    prompt: Option<String>,
    text: String,
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
    /// What is asked. The place of the image is always the first, whatever the text says.
    fn line(self) -> Line {
        let asked = self.conversations.into_iter().next().map(|turn| turn.value).unwrap_or_default();
        Line { question_id: self.id, prompt: None, text: asked.replace(IMAGE_TEXT, "").trim().into() }
    }
}

/// An id without the ending of an image's name: where images are named, some files have it and some do not.
fn bare(id: &Id) -> Id {
    match id {
        Id::Number(number) => Id::Number(*number),
        Id::Text(text) => {
            let end = [".jpg", ".png", ".jpeg"].iter().find_map(|ending| text.strip_suffix(ending));
            Id::Text(end.unwrap_or(text).into())
        }
    }
}

/// The lines of `texts`, each for the question that it belongs to: that with its id, and where several have one id, that
/// whose first line it contains.
struct Matched {
    lines: HashMap<Id, Vec<(usize, usize, Line)>>,
}

impl Matched {
    fn read(texts: &[Text]) -> Result<Self, StageError> {
        let mut lines: HashMap<Id, Vec<(usize, usize, Line)>> = HashMap::new();
        for (file, text) in texts.iter().enumerate() {
            let read: Vec<(usize, Line)> = if text.text.trim_start().starts_with('[') {
                text.json::<Vec<Conversation>>()?.into_iter().map(|conversation| (1, conversation.line())).collect()
            } else {
                text.json_lines()?
            };
            for (number, line) in read {
                lines.entry(bare(&line.question_id)).or_default().push((file, number, line));
            }
        }
        Ok(Self { lines })
    }

    /// Takes the line of a question, so that it is no other's.
    fn take(&mut self, question: &Question) -> Option<Line> {
        let lines = self.lines.get_mut(&bare(&question.id))?;
        let asked = question.prompt.lines().next().unwrap_or_default().to_lowercase();
        let fits = |line: &Line| line.prompt.as_ref().unwrap_or(&line.text).to_lowercase().contains(&asked);
        let at = match lines.as_slice() {
            [_] => 0,
            many => many.iter().position(|(_, _, line)| fits(line))?,
        };
        Some(lines.remove(at).2)
    }

    /// A line that is nobody's, if there is one: its file, its number and its id.
    fn left(&self) -> Option<(usize, usize, &Id)> {
        let left = self.lines.values().flatten().map(|(file, number, line)| (*file, *number, &line.question_id));
        left.min_by_key(|(file, number, _)| (*file, *number))
    }
}

/// The answers to `questions` in answer files that together have one for each.
///
/// # Errors
/// Names the question that has none, or two.
pub(super) fn read(texts: &[Text], questions: &[Question]) -> Result<Vec<String>, StageError> {
    let mut matched = Matched::read(texts)?;
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        let Some(line) = matched.take(question) else {
            let files: Vec<String> = texts.iter().map(|text| text.named.display().to_string()).collect();
            let message = format!("there is no answer to question {}", question.id);
            let help = "give all parts of the answers, to the same questions";
            return Err(StageError::input(files.join(", "), message, help));
        };
        answers.push(line.text);
    }
    match matched.left() {
        None => Ok(answers),
        Some((file, line, id)) if questions.iter().any(|question| bare(&question.id) == bare(id)) => {
            Err(twice(&texts[file].named, id).at_line(line))
        }
        Some((file, line, id)) => {
            let message = format!("question {id} is none of the benchmark's");
            let help = "give the answers to these questions; `limit` must be the same";
            Err(StageError::input(&texts[file].named, message, help).at_line(line))
        }
    }
}

/// Puts the prompts of a question file of LLaVA's in the place of the questions' own.
///
/// # Errors
/// Names a question that the file lacks.
pub(super) fn reword(questions: &mut [Question], text: &Text) -> Result<(), StageError> {
    let mut matched = Matched::read(std::slice::from_ref(text))?;
    for question in questions {
        let line = matched.take(question).ok_or_else(|| text.error(format!("question {} is missing", question.id)))?;
        question.prompt = line.text;
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
    fn holes_and_doubles_are_named() {
        let whole = [("a", "Is it red?", "1"), ("a", "Is it blue?", "2"), ("b", "What is it?", "3")];
        let with = |more: (&'static str, &'static str, &'static str)| [whole.as_slice(), &[more]].concat();
        for (lines, words) in [
            (whole[..2].to_vec(), "answers: there is no answer to question b"),
            (vec![whole[0], whole[2]], "answers: there is no answer to question a"),
            (with(("b", "What is it?", "3")), "answers:4: the question id b is there twice"),
            (with(("c", "What?", "3")), "answers:4: question c is none of the benchmark's"),
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
        reword(&mut asked, &text(&lines)).unwrap();
        let prompts: Vec<&str> = asked.iter().map(|question| question.prompt.as_str()).collect();
        assert_eq!(prompts, ["Is it red?\nAnswer yes or no.", "Is it blue?\nAnswer yes or no.", "What is that?"]);
        let conversations =
            r#"[{"id": "b", "conversations": [{"from": "human", "value": "<image>\nWell?"}], "image": "x"}]"#;
        reword(&mut asked[2..], &text(&[conversations])).unwrap();
        assert_eq!(asked[2].prompt, "Well?");
        let error = reword(&mut questions(), &text(&lines[..2])).unwrap_err();
        assert_eq!(error.to_string(), "llava.jsonl: question b is missing");
    }
}
