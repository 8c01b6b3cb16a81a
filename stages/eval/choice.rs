//! Finds the option of a multiple-choice question that an answer means, like `VLMEvalKit`'s `can_infer` (commit e8e78f0)
//! without a second model. Independent of benchmarks.

use std::sync::LazyLock;

use regex::Regex;

/// `The correct answer is **B**`.
static NAMED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**").ok());
/// Phrases of answers that refuse the question.
const REFUSALS: [&str; 4] = [
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
];
/// Characters that are treated as spaces.
const MARKS: &str = ".()[],:;!*#{}";

/// The letter for an answer that chooses none of the options.
const NONE: char = 'Z';

/// The letter of the chosen option, or `Z` if the answer rejects all of them; `None` if the answer is unclear.
pub(super) fn chosen(answer: &str, options: &[(char, String)]) -> Option<char> {
    if REFUSALS.iter().any(|refusal| answer.contains(refusal)) {
        return Some(NONE);
    }
    by_letter(answer, options).or_else(|| by_text(answer, options))
}

/// The option's letter, if it is the only letter that forms a word and is among the last five words; otherwise the letter
/// after "the answer is".
fn by_letter(answer: &str, options: &[(char, String)]) -> Option<char> {
    let blanked = answer.replace(|c| MARKS.contains(c), " ");
    let words: Vec<&str> = blanked.split_whitespace().collect();
    let position = |letter: char| words.iter().position(|word| word.chars().eq([letter]));
    let mut named = options.iter().filter_map(|(letter, _)| Some((*letter, position(*letter)?)));
    match (named.next(), named.next()) {
        (Some((letter, at)), None) if at + 5 > words.len() => return Some(letter),
        (None, None) if position(NONE).is_some() => return Some(NONE),
        _ => {}
    }
    let letter = NAMED.as_ref()?.captures(answer)?.get(1)?.as_str().to_ascii_uppercase().chars().next()?;
    options.iter().any(|(option, _)| *option == letter).then_some(letter)
}

/// The only option whose text occurs in the answer, unless the answer is more than twice as long as all options together.
fn by_text(answer: &str, options: &[(char, String)]) -> Option<char> {
    let answer = answer.to_lowercase();
    let length: usize = options.iter().map(|(_, text)| text.chars().count()).sum();
    if answer.chars().count() > 2 * length {
        return None;
    }
    let mut named = options.iter().filter(|(_, text)| answer.contains(&text.to_lowercase()));
    let (letter, _) = named.next()?;
    if named.next().is_some() { None } else { Some(*letter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: what `VLMEvalKit`'s `can_infer` at the commit above returned.
    #[test]
    fn answers_mean_what_vlmevalkit_takes_them_to_mean() {
        let options = [('A', "a dog"), ('B', "a cat"), ('C', "Both")].map(|(letter, text)| (letter, text.to_string()));
        for (answer, letter) in CASES {
            assert_eq!(chosen(answer, &options), letter, "{answer:?}");
        }
    }

    const CASES: [(&str, Option<char>); 26] = [
        ("A", Some('A')),
        ("B.", Some('B')),
        ("(C)", Some('C')),
        ("C)", Some('C')),
        ("c", None),
        ("Answer: B", Some('B')),
        ("The answer is A cat", Some('A')),
        ("The correct answer is **B**. Here's why: it purrs, not barks.", Some('B')),
        ("A dog and B cat", Some('A')),
        ("It shows a dog.", Some('A')),
        ("It shows a dog and a cat.", None),
        ("both", Some('C')),
        ("Neither of them is to be seen in this picture at all", None),
        ("B is what I would say after a long look at it", None),
        ("I'd say that it is B", Some('B')),
        ("The answer is blue", Some('B')),
        ("Z", Some('Z')),
        ("Cannot determine the answer", Some('Z')),
        ("I'm sorry, but without the image provided I can't say B", Some('Z')),
        ("", None),
        ("D", None),
        ("{A}", Some('A')),
        ("A,B", None),
        ("The answer  is  C", Some('C')),
        ("a cat sits here, as everybody can see who has eyes in the head", None),
        ("AB", None),
    ];
}
