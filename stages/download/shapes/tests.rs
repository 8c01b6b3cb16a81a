//! The properties of the data set: held-out scenes, balanced and correct answers, reproducible bytes.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::download::shapes::scene::{
    Cell,
    Colour::Red,
    Kind, Object,
    Shape::{Circle, Square},
};

const SEED: u64 = 42;

fn evaluation_scenes(count: usize) -> Vec<Scene> {
    (0..count).map(|n| Scene::evaluation(n, &mut Dice::new(SEED, purpose::EVALUATION_SCENES, n))).collect()
}

#[test]
fn training_never_shows_what_is_held_out_and_evaluation_always_does() {
    let training = training_scenes(SEED, 2000);
    assert!(training.iter().flat_map(|scene| &scene.objects).all(|object| !object.held_out()));
    let seen: BTreeSet<Object> = training.iter().flat_map(|scene| scene.objects.clone()).collect();
    assert_eq!(seen.len(), 12 * 3, "every kind is shown in its three other cells");
    let evaluation = evaluation_scenes(96);
    assert!(evaluation.iter().all(|scene| scene.objects.iter().any(|object| object.held_out())));
    for cell in Cell::ALL {
        assert_eq!(Kind::all().filter(|kind| kind.held_out_cell() == cell).count(), 3);
    }
}

#[test]
fn scenes_have_one_to_three_objects_in_cells_of_their_own() {
    let mut counts = [0; 4];
    for scene in training_scenes(SEED, 900).into_iter().chain(evaluation_scenes(300)) {
        counts[scene.objects.len()] += 1;
        assert!(scene.objects.windows(2).all(|pair| pair[0].cell < pair[1].cell));
    }
    assert!(counts[0] == 0 && counts[1..].iter().all(|count| (350..450).contains(count)), "{counts:?}");
}

/// Share of the most frequent answer.
fn majority<'a>(answers: impl Iterator<Item = &'a str>) -> f64 {
    let mut counts = BTreeMap::<&str, usize>::new();
    answers.for_each(|answer| *counts.entry(answer).or_default() += 1);
    *counts.values().max().unwrap() as f64 / counts.values().sum::<usize>() as f64
}

#[test]
fn answering_without_the_image_scores_low() {
    let scenes = evaluation_scenes(160);
    for negatives in Negatives::ALL {
        let file = benchmarks::pope(&scenes, negatives, SEED);
        let lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let yes = lines.iter().filter(|line| line["label"] == "yes").count();
        assert_eq!(2 * yes, lines.len(), "{negatives:?}");
        let ids: BTreeSet<u64> = lines.iter().map(|line| line["question_id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), lines.len());
    }
    let (_, annotations) = benchmarks::vqav2(&scenes, SEED);
    let answers = annotations["annotations"].as_array().unwrap().iter();
    let share = majority(answers.map(|annotation| annotation["multiple_choice_answer"].as_str().unwrap()));
    assert!(share < 0.2, "{share}");
}

#[test]
fn questions_of_training_are_balanced_and_distinct() {
    for (number, scene) in training_scenes(SEED, 600).iter().enumerate() {
        let questions = text::first_mix(scene, &mut Dice::new(SEED, purpose::FIRST_MIX, number));
        let texts: BTreeSet<&str> = questions.iter().map(|question| question.text.as_str()).collect();
        assert_eq!(texts.len(), questions.len());
        assert!((8..=13).contains(&questions.len()), "{}", questions.len());
        // In each image; otherwise the number of objects would hint at the answer.
        let answers = |answer: &str| questions.iter().filter(|question| question.answer == answer).count();
        assert_eq!(answers("Yes"), answers("No"));
    }
}

#[test]
fn answers_are_right() {
    let object = |cell, colour, shape| Object { cell, kind: Kind { colour, shape } };
    let scene = Scene { objects: vec![object(Cell::TopLeft, Red, Circle), object(Cell::BottomRight, Red, Square)] };
    assert_eq!(text::caption(&scene), "a red circle in the top left and a red square in the bottom right.");
    let truth = BTreeMap::from([
        ("How many objects are there?", "2"),
        ("How many red objects are there?", "2"),
        ("How many circles are there?", "1"),
        ("How many triangles are there?", "0"),
        ("What color is the square?", "red"),
        ("What shape is the object in the bottom right?", "square"),
        ("Where is the red circle?", "top left"),
        ("Is there a red square in the image?", "Yes"),
        ("Is there a red triangle in the image?", "No"),
        ("Is there a circle in the image?", "Yes"),
        ("Are there more circles than triangles?", "Yes"),
        ("Are there more circles than squares?", "No"),
    ]);
    let mut met = BTreeSet::new();
    for number in 0..400 {
        for question in text::second_mix(&scene, &mut Dice::new(SEED, 9, number)) {
            assert_ne!(question.text, "What shape is the red object?", "there are two");
            if let Some((text, answer)) = truth.get_key_value(question.text.as_str()) {
                assert_eq!(question.answer, *answer, "{text}");
                met.insert(*text);
            }
        }
    }
    assert_eq!(met.len(), truth.len(), "{met:?}");
}

#[test]
fn pope_asks_for_popular_and_for_co_occurring_objects() {
    let scenes = evaluation_scenes(160);
    let asked = |negatives| -> Vec<String> {
        let lines = benchmarks::pope(&scenes, negatives, SEED);
        let no = lines.lines().filter(|line| line.contains("\"no\""));
        no.map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].to_string()).collect()
    };
    let different = |texts: &[String]| texts.iter().collect::<BTreeSet<_>>().len();
    assert!(different(&asked(Negatives::Random)) == 12);
    assert!(different(&asked(Negatives::Popular)) < 10, "the same few, most frequent kinds");
    assert_ne!(asked(Negatives::Adversarial), asked(Negatives::Popular));
}

#[test]
fn images_differ_and_their_bytes_are_fixed() {
    let scene = Scene::training(&mut Dice::new(SEED, 1, 0));
    let one = draw::draw(&scene, &mut Dice::new(SEED, 3, 0));
    assert_ne!(one, draw::draw(&scene, &mut Dice::new(SEED, 3, 1)));
    let sum = one.as_raw().iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    assert_eq!(sum, 5_740_538_937_551_774_862, "pixels are the same on every machine");
}
