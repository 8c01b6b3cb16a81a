//! Compares answers with those of annotators: the VQA scorer's normalisation, the one that LLaVA applies before it, and the
//! soft accuracy. The quirks (a period rule that stops after 32 periods, a pattern that looks behind for the wrong thing) are
//! the scorer's and part of published figures. Independent of questions.

/// Characters that are removed or replaced by a space.
const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];
/// The scorer's contractions.
const CONTRACTIONS: &str = "\
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't \
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't \
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've \
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd \
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're \
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've \
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll \
    y'all'd've you'd you'd've you'll you're you've";
/// The scorer passes a flag, `re.UNICODE` = 32, as the number of replacements.
const PERIODS_REMOVED: usize = 32;

/// Normalises an answer like the VQA scorer, which does so if the annotators differ.
pub(super) fn normalize(text: &str) -> String {
    numbers_and_articles(&punctuation(&one_line(text)))
}

/// Prepares an answer for submission like LLaVA's `EvalAIAnswerProcessor`.
pub(super) fn prepare(text: &str) -> String {
    let text = text.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    normalize(text.trim())
}

/// The soft accuracy `mean over i of min(1, (annotators other than i who gave the answer) / 3)`. `equal` says which of the
/// annotators, usually ten, gave the answer.
pub(super) fn soft_accuracy(equal: &[bool]) -> f64 {
    let all = equal.iter().filter(|equal| **equal).count();
    let sum: f64 = equal.iter().map(|own| ((all - usize::from(*own)) as f64 / 3.0).min(1.0)).sum();
    sum / equal.len().max(1) as f64
}

/// The VQA scorer's soft accuracy, which normalises all answers if the annotators differ.
pub(super) fn vqa_accuracy<'a>(answer: &str, given: impl Iterator<Item = &'a str> + Clone) -> f64 {
    let first = given.clone().next().unwrap_or_default();
    let differ = given.clone().any(|other| other != first);
    let normal = |text: &str| if differ { normalize(text) } else { one_line(text) };
    let answer = normal(answer);
    soft_accuracy(&given.map(|other| normal(other) == answer).collect::<Vec<_>>())
}

/// Replaces line breaks and tabs by spaces.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\t'], " ").trim().to_string()
}

/// Removes a punctuation mark if it is next to a space anywhere in the text, otherwise replaces it by a space. A comma
/// between digits makes all marks be removed.
fn punctuation(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let grouped = chars.windows(3).any(|three| three[0].is_numeric() && three[1] == ',' && three[2].is_numeric());
    let mut out = text.to_string();
    for mark in PUNCTUATION {
        let beside_blank = chars.windows(2).any(|two| two == [mark, ' '] || two == [' ', mark]);
        out = out.replace(mark, if beside_blank || grouped { "" } else { " " });
    }
    periods(&out)
}

/// Removes periods that are not followed by a digit.
fn periods(text: &str) -> String {
    let mut removed = 0;
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '.' && removed < PERIODS_REMOVED && !chars.peek().is_some_and(|next| next.is_numeric()) {
            removed += 1;
        } else {
            out.push(c);
        }
    }
    out
}

/// Changes to lower case, replaces number words by digits, removes articles and restores forgotten apostrophes.
fn numbers_and_articles(text: &str) -> String {
    let lower = text.to_lowercase();
    let digits = |word| NUMBERS.iter().find(|(name, _)| *name == word).map_or(word, |(_, digits)| *digits);
    let words = lower.split_whitespace().map(digits).filter(|word| !matches!(*word, "a" | "an" | "the"));
    let words: Vec<&str> = words.map(|word| contraction(word).unwrap_or(word)).collect();
    words.join(" ")
}

/// The word with its apostrophe, if exactly one was forgotten. The scorer's forms with a capital never match, since texts are
/// in lower case by then, and one of its pairs is the wrong way round.
fn contraction(word: &str) -> Option<&'static str> {
    if word == "somebody'd" {
        return Some("somebodyd");
    }
    CONTRACTIONS.split(' ').find(|form| {
        form.len() == word.len() + 1
            && form.match_indices('\'').any(|(at, _)| word.starts_with(&form[..at]) && word.ends_with(&form[at + 1..]))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_are_normalized_like_both_references() {
        let text = std::fs::read_to_string(crate::eval::tests::fixture("vqav2/expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases = expected["normalisation"].as_array().unwrap();
        assert_eq!(cases.len(), 65);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(normalize(text), case["vqaEval(punct->digit_article)"], "{text:?}");
            assert_eq!(prepare(text), case["EvalAIAnswerProcessor"], "{text:?}");
        }
    }

    #[test]
    fn one_forgotten_apostrophe_is_restored() {
        for (plain, right) in [
            ("dont", Some("don't")),
            ("couldnt've", Some("couldn't've")),
            ("couldn'tve", Some("couldn't've")),
            ("couldntve", None),
            ("y'alldve", None),
            ("y'all'dve", Some("y'all'd've")),
            ("twas", Some("'twas")),
            ("ow's'at", Some("'ow's'at")),
            ("its", None),
            ("don't", None),
            ("hed", Some("he'd")),
            ("shed", None),
        ] {
            assert_eq!(contraction(plain), right, "{plain}");
        }
    }
}
