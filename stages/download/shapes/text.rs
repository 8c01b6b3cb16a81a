//! Captions, questions and answers about scenes. Independent of file formats.

use super::{
    dice::Dice,
    scene::{Cell, Colour, Kind, Object, Scene, Shape},
};

/// Requests for a caption, varied as in LLaVA's pretraining data.
pub(super) const CAPTION_REQUESTS: [&str; 4] =
    ["Describe the image.", "What is in the image?", "Give a short description of the image.", "Say what you see."];

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The first words, which are the question types of `VQAv2`.
    pub(super) category: &'static str,
    pub(super) text: String,
    pub(super) answer: String,
}

impl Question {
    fn new(category: &'static str, text: String, answer: &str) -> Self {
        Self { category, text, answer: answer.into() }
    }
}

/// Lists all objects with their positions.
pub(super) fn caption(scene: &Scene) -> String {
    let parts: Vec<String> =
        scene.objects.iter().map(|object| format!("a {} in the {}", object.kind.name(), object.cell.name())).collect();
    match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}.", rest.join(", ")),
        _ => format!("{}.", parts.join("")),
    }
}

/// POPE's question.
pub(super) fn presence(kind: Kind) -> String {
    format!("Is there a {} in the image?", kind.name())
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "Yes" } else { "No" }
}

/// "Is there a ...?", with yes and no equally likely.
pub(super) fn about_presence(scene: &Scene, dice: &mut Dice) -> Question {
    let yes = dice.coin();
    let kind = if yes { dice.pick(&scene.kinds()) } else { absent(scene, dice) };
    Question::new("is there a", presence(kind), yes_no(yes))
}

/// A kind that is absent from the scene. Half of the time it shares its colour or shape with an object in the scene.
fn absent(scene: &Scene, dice: &mut Dice) -> Kind {
    let hard = dice.coin();
    let near = |kind: &Kind| scene.count(|o| o.kind.colour == kind.colour || o.kind.shape == kind.shape) > 0;
    let kinds: Vec<Kind> = Kind::all().filter(|kind| !scene.has(*kind) && (!hard || near(kind))).collect();
    dice.pick(&kinds)
}

/// Questions about the presence of kinds, and of single colours and shapes. Each image has as many questions with the
/// answer yes as with no, so that nothing but the image gives the answer away, not even the number of objects.
fn presence_questions(scene: &Scene, dice: &mut Dice) -> Vec<Question> {
    let mut questions: Vec<Question> = Vec::new();
    let mut add = |kind: Kind, yes: bool| {
        let question = Question::new("is there a", presence(kind), yes_no(yes));
        let new = !questions.contains(&question);
        if new {
            questions.push(question);
        }
        new
    };
    for kind in dice.shuffled(scene.kinds()).into_iter().take(2) {
        add(kind, true);
        while !add(absent(scene, dice), false) {}
    }
    questions.extend(about_attributes(scene, dice));
    questions
}

/// "Is there an object of this colour? Of this shape?": for each, one question with the answer yes and one with no.
fn about_attributes(scene: &Scene, dice: &mut Dice) -> Vec<Question> {
    let mut questions = Vec::new();
    let ask = |name: &str, yes| Question::new("is there a", format!("Is there a {name} in the image?"), yes_no(yes));
    let colours = dice.shuffled(Colour::ALL);
    let shapes = dice.shuffled(Shape::ALL);
    let colour = |yes| colours.iter().find(|colour| (scene.count(|o| o.kind.colour == **colour) > 0) == yes);
    let shape = |yes| shapes.iter().find(|shape| (scene.count(|o| o.kind.shape == **shape) > 0) == yes);
    // If all three shapes are present, no question has the answer no, and none is asked.
    if let Some((yes, no)) = colour(true).zip(colour(false)) {
        questions.extend([ask(&format!("{} object", yes.name()), true), ask(&format!("{} object", no.name()), false)]);
    }
    if let Some((yes, no)) = shape(true).zip(shape(false)) {
        questions.extend([ask(yes.name(), true), ask(no.name(), false)]);
    }
    questions
}

/// "What color is ...?"
pub(super) fn about_colour(scene: &Scene, dice: &mut Dice) -> Question {
    let object = dice.pick(&scene.objects);
    let text = match scene.only(|other| other.kind.shape == object.kind.shape) {
        Some(_) if dice.coin() => format!("What color is the {}?", object.kind.shape.name()),
        _ => format!("What color is the object in the {}?", object.cell.name()),
    };
    Question::new("what color is the", text, object.kind.colour.name())
}

/// "What shape is ...?"
pub(super) fn about_shape(scene: &Scene, dice: &mut Dice) -> Question {
    let object = dice.pick(&scene.objects);
    let text = match scene.only(|other| other.kind.colour == object.kind.colour) {
        Some(_) if dice.coin() => format!("What shape is the {} object?", object.kind.colour.name()),
        _ => format!("What shape is the object in the {}?", object.cell.name()),
    };
    Question::new("what", text, object.kind.shape.name())
}

/// "How many objects are there?"
pub(super) fn about_number(scene: &Scene) -> Question {
    Question::new("how many", "How many objects are there?".into(), &scene.objects.len().to_string())
}

/// "Where is ...?" `None` if no kind of object occurs exactly once.
pub(super) fn about_position(scene: &Scene, dice: &mut Dice) -> Option<Question> {
    let single: Vec<Object> = scene
        .objects
        .iter()
        .copied()
        .filter(|object| scene.only(|other| other.kind == object.kind).is_some())
        .collect();
    let object = dice.maybe(&single)?;
    Some(Question::new("where is the", format!("Where is the {}?", object.kind.name()), Cell::name(object.cell)))
}

/// The first mix: distinct questions of every type in random order. The request for a description comes last, so that no
/// answer can be copied from it.
pub(super) fn first_mix(scene: &Scene, dice: &mut Dice) -> Vec<Question> {
    let mut questions = short_questions(scene, dice);
    questions.push(Question::new("describe", CAPTION_REQUESTS[0].into(), &caption(scene)));
    questions
}

/// Eight to twelve questions with short answers.
fn short_questions(scene: &Scene, dice: &mut Dice) -> Vec<Question> {
    let mut questions = vec![about_number(scene)];
    questions.extend(presence_questions(scene, dice));
    questions.push(about_colour(scene, dice));
    questions.push(about_shape(scene, dice));
    questions.extend(about_position(scene, dice));
    distinct(dice.shuffled(questions))
}

/// The second mix: counting and comparing, with some questions of the first mix.
pub(super) fn second_mix(scene: &Scene, dice: &mut Dice) -> Vec<Question> {
    let mut questions = short_questions(scene, dice);
    questions.truncate(4);
    questions.push(about_number(scene));
    for _ in 0..2 {
        let colour = if dice.coin() { dice.pick(&scene.objects).kind.colour } else { dice.pick(&Colour::ALL) };
        let number = scene.count(|object| object.kind.colour == colour).to_string();
        questions.push(Question::new("how many", format!("How many {} objects are there?", colour.name()), &number));
        let shape = if dice.coin() { dice.pick(&scene.objects).kind.shape } else { dice.pick(&Shape::ALL) };
        let number = scene.count(|object| object.kind.shape == shape).to_string();
        questions.push(Question::new("how many", format!("How many {} are there?", shape.plural()), &number));
    }
    let yes = dice.coin();
    let pairs: Vec<(Shape, Shape)> = Shape::ALL
        .into_iter()
        .flat_map(|more| Shape::ALL.map(|less| (more, less)))
        .filter(|(more, less)| {
            let number = |shape: &Shape| scene.count(|object| object.kind.shape == *shape);
            more != less && (number(more) > number(less)) == yes
        })
        .collect();
    if let Some((more, less)) = dice.maybe(&pairs) {
        let text = format!("Are there more {} than {}?", more.plural(), less.plural());
        questions.push(Question::new("are there", text, yes_no(yes)));
    }
    distinct(dice.shuffled(questions))
}

/// Drops repeated questions.
fn distinct(questions: Vec<Question>) -> Vec<Question> {
    let mut kept: Vec<Question> = Vec::new();
    for question in questions {
        if kept.iter().all(|other| other.text != question.text) {
            kept.push(question);
        }
    }
    kept
}
