//! The nine benchmarks in their publishers' formats, with a question or two each about drawn images. Independent of the
//! tests that use them.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::hub::{Files, archive};

/// Images of GQA and `TextVQA`, which are in downloads that training also uses.
pub(crate) const GQA_IMAGE: &str = "2370799";
pub(crate) const TEXTVQA_IMAGE: &str = "0054c91397f2fe05";
/// POPE's and MME's folders.
const POPE: &str = "POPE-e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco";
const MME: &str = "MME_Benchmark_release_version/MME_Benchmark";
const MME_TASKS: [&str; 14] = [
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
];

/// The stages that download the benchmarks, with the file name and content at each address.
pub(crate) fn downloads(image: &[u8]) -> BTreeMap<&'static str, (&'static str, Vec<u8>)> {
    let zip = |files: &[(String, Vec<u8>)]| archive(files.iter().map(|(name, bytes)| (name.clone(), bytes)));
    let json = |value: Value| value.to_string().into_bytes();
    let picture = |name: &str| zip(&[(name.to_string(), image.to_vec())]);
    let answers: Vec<Value> = (1..=10).map(|id| json!({"answer": "red", "answer_id": id})).collect();
    let annotation = json!({"question_id": 421, "question_type": "what", "answer_type": "other", "image_id": 42, "answers": answers});
    let ask = |subtype: &str, ids: &[u64]| {
        let questions: Vec<Value> =
            ids.iter().map(|id| json!({"question_id": id, "image_id": 42, "question": "What colour?"})).collect();
        json(json!({"data_subtype": subtype, "questions": questions}))
    };
    let vizwiz = json!({"image": "VizWiz_val_00000000.jpg", "question": "What?", "answers": answers,
        "answer_type": "other", "answerable": 1});
    let vizwiz_test = json!({"image": "VizWiz_test_00000000.jpg", "question": "What?"});
    let problem = |image: Option<&str>| json!({"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": image});
    let texts = json!({"data": [{"question_id": 1, "image_id": TEXTVQA_IMAGE, "question": "What does it say?",
        "answers": vec!["red"; 10]}]});
    let read = json!({"data": [{"image_id": TEXTVQA_IMAGE, "ocr_tokens": ["RED"]}]});
    let names = |names: [&str; 2]| names.map(str::to_string);
    let [val, annotations] =
        names(["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"]);
    let [dev, test] = ["test-dev2015", "test2015"].map(|set| format!("v2_OpenEnded_mscoco_{set}_questions.json"));
    BTreeMap::from([
        ("vqav2_questions", ("q.zip", zip(&[(val, ask("val2014", &[421]))]))),
        ("vqav2_annotations", ("a.zip", zip(&[(annotations, json(json!({"annotations": [annotation]})))]))),
        (
            "vqav2_test_questions",
            ("q.zip", zip(&[(dev, ask("test-dev2015", &[421])), (test, ask("test2015", &[420, 421]))])),
        ),
        ("coco_val2014", ("val2014.zip", picture("val2014/COCO_val2014_000000000042.jpg"))),
        ("coco_test2015", ("test2015.zip", picture("test2015/COCO_test2015_000000000042.jpg"))),
        ("gqa_questions", ("q.zip", zip(&[("testdev_balanced_questions.json".into(), json(gqa()))]))),
        (
            "vizwiz_annotations",
            (
                "a.zip",
                zip(&[("val.json".into(), json(json!([vizwiz]))), ("test.json".into(), json(json!([vizwiz_test])))]),
            ),
        ),
        ("vizwiz_val", ("val.zip", picture("val/VizWiz_val_00000000.jpg"))),
        ("vizwiz_test", ("test.zip", picture("test/VizWiz_test_00000000.jpg"))),
        ("scienceqa_problems", ("problems.json", json(json!({"4": problem(Some("image.png")), "5": problem(None)})))),
        ("scienceqa_splits", ("pid_splits.json", json(json!({"test": ["4", "5"]})))),
        ("scienceqa_images", ("test.zip", picture("test/4/image.png"))),
        ("textvqa_questions", ("TextVQA_0.5.1_val.json", json(texts))),
        ("textvqa_ocr", ("TextVQA_Rosetta_OCR_v0.2_val.json", json(read))),
        ("pope_questions", ("pope.zip", zip(&pope()))),
        ("mmbench", ("mmbench_dev_20230712.tsv", mmbench(image))),
        ("mmvet_evaluator", ("mm-vet_evaluator.py", b"prompt = \"\"\"...\"\"\"".to_vec())),
        ("mmvet", ("mm-vet.zip", zip(&mmvet(image)))),
    ])
}

/// The benchmark that is on the hub.
pub(crate) fn mme(image: &[u8]) -> Files {
    let mut files = Vec::new();
    for task in MME_TASKS {
        let separate = matches!(task, "posters" | "celebrity" | "scene" | "landmark" | "artwork");
        let (texts, images) = if separate { ("/questions_answers_YN", "/images") } else { ("", "") };
        let text = "Is it red? Please answer yes or no.\tYes\nIs it blue?  Please answer yes or no.\tNo\n";
        files.push((format!("{MME}/{task}{texts}/0001.txt"), text.as_bytes().to_vec()));
        files.push((format!("{MME}/{task}{images}/0001.png"), image.to_vec()));
    }
    let zip = archive(files.iter().map(|(name, bytes)| (name.clone(), bytes)));
    Files::from([("MME_Benchmark_release_version.zip".into(), zip)])
}

fn gqa() -> Value {
    json!({"201307251": {"question": "What is it?", "imageId": GQA_IMAGE, "answer": "circle", "isBalanced": true,
        "types": {"structural": "query", "semantic": "obj", "detailed": "x"},
        "semantic": [{"operation": "select", "dependencies": [], "argument": "x (1)"}]}})
}

fn pope() -> Vec<(String, Vec<u8>)> {
    let line = |id: u32, label: &str| json!({"question_id": id, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a cat?", "label": label});
    let text = format!("{}\n{}\n", line(1, "yes"), line(2, "no"));
    let file = |set: &str| (format!("{POPE}/coco_pope_{set}.json"), text.clone().into_bytes());
    ["random", "popular", "adversarial"].map(file).to_vec()
}

fn mmbench(image: &[u8]) -> Vec<u8> {
    let image = STANDARD.encode(image);
    let rows = [(1, "red", "blue", "A"), (1_000_001, "blue", "red", "B")].map(|(index, first, second, answer)| {
        format!("{index}\tWhat colour?\t\t{first}\t{second}\t\t\t{answer}\tcolor\t{image}\tx\tcoarse\t\tdev\n")
    });
    let head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n";
    format!("{head}{}", rows.concat()).into_bytes()
}

fn mmvet(image: &[u8]) -> Vec<(String, Vec<u8>)> {
    let question =
        json!({"v1_0": {"imagename": "v1_0.png", "question": "What?", "answer": "red<OR>blue", "capability": ["rec"]}});
    vec![
        ("mm-vet/mm-vet.json".into(), question.to_string().into_bytes()),
        ("mm-vet/images/v1_0.png".into(), image.to_vec()),
    ]
}
