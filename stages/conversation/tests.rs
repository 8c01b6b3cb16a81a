//! Turns on one KV cache have the answers of computing everything anew.
#![allow(clippy::unwrap_used)]

use std::{cell::Cell, panic::panic_any, path::Path};

use imp_model::{
    Precision,
    tensor::{DeviceError, Place},
};

use super::*;
use crate::eval::tests::workshop;

fn speaker(root: &Path) -> Speaker {
    Speaker::open(&root.join("model"), None, &Place::host(Precision::F32)).unwrap()
}

fn picture(root: &Path, number: usize) -> Image {
    Image::new(std::fs::read(root.join(format!("data/eval/images/{number:012}.png"))).unwrap())
}

fn manner(max_tokens: usize) -> Manner {
    Manner { max_tokens, sampling: Sampling::default(), stop: Vec::new() }
}

fn question(text: &str, images: &[&Image]) -> Question {
    Question { images: images.iter().map(|image| (*image).clone()).collect(), text: text.into() }
}

const GO_ON: fn(&str) -> ControlFlow<()> = |_| ControlFlow::Continue(());

/// Says `questions` one after the other. Returns the dialogue before the last one, and all replies.
fn talk(conversation: &mut Conversation<'_>, questions: Vec<Question>, manner: &Manner) -> (Dialogue, Vec<Reply>) {
    let (mut dialogue, mut replies) = (Dialogue::default(), Vec::<Reply>::new());
    for asked in questions {
        if let Some(last) = replies.last() {
            let before = std::mem::take(&mut dialogue.asked);
            dialogue.past.push((before, last.text.clone()));
        }
        dialogue.asked = asked;
        replies.push(conversation.answer(&dialogue, manner, GO_ON).unwrap());
    }
    (dialogue, replies)
}

/// What the model had read is forgotten then.
#[test]
fn the_fault_of_a_device_is_no_answer_and_the_conversation_can_go_on() {
    let root = workshop();
    let speaker = speaker(root.path());
    let mut conversation = Conversation::new(&speaker);
    let asked = question("What is it?", &[&picture(root.path(), 1)]);
    let dialogue = Dialogue { asked, ..Dialogue::default() };
    let before = conversation.answer(&dialogue, &manner(9), GO_ON).unwrap();
    let failed = DeviceError::Failed { call: "cuLaunchKernel".into(), reason: "unspecified launch failure".into() };
    // Operations panic with it; so does who listens here, in the midst of them.
    let error = conversation.answer(&dialogue, &manner(9), |_| panic_any(failed.clone())).unwrap_err();
    assert_eq!(error.to_string(), "the GPU failed in cuLaunchKernel: unspecified launch failure");
    assert!(matches!(error, NoAnswer::Device(error) if error.help() == Some("ask it on the CPU with `--device cpu`")));
    let after = conversation.answer(&dialogue, &manner(9), GO_ON).unwrap();
    assert_eq!((after.text, after.tokens, after.reused), (before.text, before.tokens, 0));
}

#[test]
fn later_turns_are_answered_as_if_all_was_computed_anew() {
    let root = workshop();
    let speaker = speaker(root.path());
    let [first, second] = [1, 2].map(|number| picture(root.path(), number));
    let patches = speaker.model().vision.config.patches();
    let questions = vec![
        question("What is it?", &[&first]),
        question("And its colour?", &[]),
        question("Are these two the same?", &[&second, &first]),
        question("Why?", &[]),
    ];
    let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    for manner in [manner(9), Manner { sampling, ..manner(9) }] {
        let mut conversation = Conversation::new(&speaker);
        let (dialogue, replies) = talk(&mut conversation, questions.clone(), &manner);
        for (number, reply) in replies.iter().enumerate() {
            let mut anew = dialogue.clone();
            if number < 3 {
                anew.asked = anew.past.drain(number..).next().unwrap().0;
            }
            let expected = Conversation::new(&speaker).answer(&anew, &manner, GO_ON).unwrap();
            assert_eq!((&reply.text, reply.tokens, reply.ended), (&expected.text, expected.tokens, expected.ended));
            assert_eq!((expected.reused, reply.positions), (0, expected.positions));
        }
        // What was read is not read again: the questions, their images. The tokens of an answer are if its text has others.
        for [before, after] in replies.array_windows() {
            assert!(after.reused >= before.positions, "{} of {}", after.reused, before.positions);
        }
        assert!(replies[0].positions > patches && replies[2].positions - replies[2].reused > 2 * patches);
        assert!(replies.iter().any(|reply| !reply.text.is_empty()));
    }
}

#[test]
fn a_conversation_may_go_back_and_another_way() {
    let root = workshop();
    let speaker = speaker(root.path());
    let [image, other] = [1, 2].map(|number| picture(root.path(), number));
    let mut conversation = Conversation::new(&speaker);
    let ask = |asked| Dialogue { asked, ..Dialogue::default() };
    let first = ask(question("What is it?", &[&image]));
    let reply = conversation.answer(&first, &manner(8), GO_ON).unwrap();
    // The same again: all but one position is there.
    let again = conversation.answer(&first, &manner(8), GO_ON).unwrap();
    assert_eq!((again.reused, &again.text), (again.positions - 1, &reply.text));
    for changed in [
        ask(question("What is it?", &[&other])),
        ask(question("What was it?", &[&image])),
        Dialogue { system: Some("Lie.".into()), ..first.clone() },
    ] {
        let reply = conversation.answer(&changed, &manner(8), GO_ON).unwrap();
        let expected = Conversation::new(&speaker).answer(&changed, &manner(8), GO_ON).unwrap();
        assert_eq!(reply.text, expected.text);
        assert!(reply.reused < reply.positions - 1);
    }
}

#[test]
fn an_answer_is_interrupted_and_the_conversation_goes_on() {
    let root = workshop();
    let speaker = speaker(root.path());
    let image = picture(root.path(), 1);
    let mut conversation = Conversation::new(&speaker);
    let asked = Dialogue { asked: question("What is it?", &[&image]), ..Dialogue::default() };
    let whole = Conversation::new(&speaker).answer(&asked, &manner(9), GO_ON).unwrap();
    // Before the image is looked at.
    let stopped = conversation.answer(&asked, &manner(9), |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(NoAnswer::Interrupted)));
    conversation.answer(&asked, &manner(9), GO_ON).unwrap();
    // While the prompt is read, and after the second token.
    for calls in [0, 3] {
        let left = Cell::new(calls);
        let stop = |_: &str| {
            left.set(left.get() - 1);
            if left.get() < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let reply = conversation.answer(&asked, &manner(9), stop).unwrap();
        assert_eq!((reply.ended, reply.tokens), (Ended::Interrupted, calls as usize));
        let after = conversation.answer(&asked, &manner(9), GO_ON).unwrap();
        assert_eq!((after.text, after.ended), (whole.text.clone(), whole.ended));
    }
}

#[test]
fn a_full_context_is_said_and_never_cut() {
    let root = workshop();
    let mut speaker = speaker(root.path());
    let asked = |text: &str| Dialogue { asked: question(text, &[]), ..Dialogue::default() };
    let reply = Conversation::new(&speaker).answer(&asked("What?"), &manner(5), GO_ON).unwrap();
    assert_eq!((reply.ended, reply.tokens), (Ended::MaxTokens, 5));
    speaker.shorten(reply.positions + 3);
    let mut conversation = Conversation::new(&speaker);
    let reply = conversation.answer(&asked("What?"), &manner(5), GO_ON).unwrap();
    assert_eq!((reply.ended, reply.tokens), (Ended::ContextFull, 3));
    let error = conversation.answer(&asked("What, and then?"), &manner(5), GO_ON).unwrap_err();
    assert!(error.to_string().starts_with("the conversation takes "), "{error}");
    // The shorter one still has its answer.
    let again = conversation.answer(&asked("What?"), &manner(2), GO_ON).unwrap();
    assert_eq!(again.reused, again.positions - 1);
}

#[test]
fn what_can_not_be_said_is_refused_in_words() {
    let root = workshop();
    let speaker = speaker(root.path());
    let mut conversation = Conversation::new(&speaker);
    let image = picture(root.path(), 1);
    let broken = Image::new(b"no image".to_vec());
    let good = question("a", &[&image]);
    for (dialogue, words) in [
        (Dialogue { asked: question("a</s>b", &[]), ..Dialogue::default() }, "a text contains `</s>`, which stands"),
        (
            Dialogue { past: vec![(good.clone(), "<|endoftext|>".into())], ..Dialogue::default() },
            "a text contains `<|endoftext|>`",
        ),
        (Dialogue { system: Some("</s>".into()), asked: good.clone(), ..Dialogue::default() }, "`</s>`"),
        (
            Dialogue { asked: question("a", &[&image, &broken]), ..Dialogue::default() },
            "image 2 of the conversation: this is not a PNG",
        ),
    ] {
        let error = conversation.answer(&dialogue, &manner(4), GO_ON).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    // A mark in a text is text.
    let marked = Dialogue { asked: question("What does <image> mean?", &[]), ..Dialogue::default() };
    assert_eq!(image_tokens(&prompt(&speaker, &marked).unwrap().ids), 0);
    let stopped = Manner { stop: vec!["e".into()], ..manner(40) };
    let reply = conversation.answer(&marked, &stopped, GO_ON).unwrap();
    assert!(!reply.text.contains('e'));
}
