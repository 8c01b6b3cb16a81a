//! Which option of a multiple-choice question an answer means, as `VLMEvalKit`'s `can_infer` finds it out (commit e8e78f0)
//! without asking another model. Does not know benchmarks.

use std::sync::LazyLock;

use regex::Regex;

/// `The correct answer is **B**`.
static NAMED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**").ok());
/// Answers that refuse.
const REFUSALS: [&str; 4] = [
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
];
/// Taken for blanks.
const MARKS: &str = ".()[],:;!*#{}";

/// Stands for an answer that names none of the options.
const NONE: char = 'Z';

/// The letter of the option, or `Z` if the answer says that it is none of them; `None` if it does not tell.
pub(super) fn chosen(answer: &str, options: &[(char, String)]) -> Option<char> {
    if REFUSALS.iter().any(|refusal| answer.contains(refusal)) {
        return Some(NONE);
    }
    by_letter(answer, options).or_else(|| by_text(answer, options))
}

/// The only letter that stands by itself, if it is among the last five words; else the one that is said to be the answer.
fn by_letter(answer: &str, options: &[(char, String)]) -> Option<char> {
    let blanked = answer.replace(|c| MARKS.contains(c), " ");
    let words: Vec<&str> = blanked.split_whitespace().collect();
    let place = |letter: char| words.iter().position(|word| word.chars().eq([letter]));
    let mut named = options.iter().filter_map(|(letter, _)| Some((*letter, place(*letter)?)));
    match (named.next(), named.next()) {
        (Some((letter, at)), None) if at + 5 > words.len() => return Some(letter),
        (None, None) if place(NONE).is_some() => return Some(NONE),
        _ => {}
    }
    let letter = NAMED.as_ref()?.captures(answer)?.get(1)?.as_str().to_ascii_uppercase().chars().next()?;
    options.iter().any(|(option, _)| *option == letter).then_some(letter)
}

/// The only option whose words are in the answer, if that is not much longer than all options together.
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

    /// Each expectation is what `can_infer` of `VLMEvalKit` at the commit above returned when it was run.
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
