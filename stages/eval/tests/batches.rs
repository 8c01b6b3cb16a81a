//! Answers do not depend on how questions are shared out: to batches, workers, shards, and processes that are stopped.

use super::*;

#[test]
fn any_number_of_workers_answers_the_same() {
    let root = workshop();
    let config = json!({"benchmark": "pope", "max_new_tokens": 3});
    let with = |work: &str, workers: usize| trial(root.path(), work).micro_batch(2).workers(workers);
    let one = with("one", 1).run::<Eval>(&config).done();
    let three = with("three", 3).run::<Eval>(&config).done();
    assert_eq!(crate::testing::tree(&three), crate::testing::tree(&one));
    assert!(matches!(with("stopped", 3).cancelled_after(3).run::<Eval>(&config).error(), crate::StageError::Cancelled));
    let resumed = with("stopped", 2).run::<Eval>(&config).done();
    assert_eq!(crate::testing::tree(&resumed), crate::testing::tree(&one));
}

#[test]
fn answers_do_not_depend_on_batches_or_interruptions() {
    let root = workshop();
    let config = json!({"benchmark": "pope", "max_new_tokens": 3});
    let whole = fs::read(evaluate(root.path(), "whole", &config).done().join("answers.jsonl")).unwrap();
    let single = trial(root.path(), "single").micro_batch(1).run::<Eval>(&config).done();
    assert_eq!(fs::read(single.join("answers.jsonl")).unwrap(), whole);

    let stopped = trial(root.path(), "stopped").micro_batch(2).cancelled_after(3).run::<Eval>(&config);
    assert!(matches!(stopped.error(), crate::StageError::Cancelled));
    let log = root.path().join("stopped/checkpoint/answers.jsonl");
    let before = lines(&log).len();
    assert!(before > 0);
    fs::write(&log, [fs::read(&log).unwrap().as_slice(), b"{\"number\": 1, \"te"].concat()).unwrap();
    let resumed = evaluate(root.path(), "stopped", &config);
    let crate::contract::event::Event::Progress(first) = &resumed.events[0] else { panic!("{:?}", resumed.events[0]) };
    assert_eq!(first.done as usize, before, "it resumes");
    assert_eq!(fs::read(resumed.done().join("answers.jsonl")).unwrap(), whole);
}

/// As a process that was killed while it wrote, or another `micro_batch_size`, may have left it: with other neighbours, an answer could round otherwise.
#[test]
fn a_batch_that_lacks_an_answer_is_asked_as_a_whole() {
    let root = workshop();
    let config = json!({"benchmark": "pope", "max_new_tokens": 3});
    let with = || trial(root.path(), "work").micro_batch(2);
    let whole = tree(&with().run::<Eval>(&config).done());
    let log = root.path().join("work/checkpoint/answers.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    fs::write(&log, rest).unwrap();
    assert_eq!(tree(&with().run::<Eval>(&config).done()), whole);
    let added: Vec<Value> = lines(&log).split_off(rest.lines().count());
    assert!(added.len() > 1 && added.contains(&serde_json::from_str(first).unwrap()), "{added:?}");
}

#[test]
fn shards_give_the_same_result_as_one_stage() {
    let root = workshop();
    let config = |more: Value| {
        let mut config = json!({"benchmark": "vqav2", "max_new_tokens": 3, "shards": 3});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let whole = tree(&evaluate(root.path(), "whole", &config(json!({}))).done());
    let parts = [0, 1, 2].map(|shard| {
        let part = evaluate(root.path(), &format!("part{shard}"), &config(json!({"shard": shard}))).done();
        assert!(lines(&part.join("answers.jsonl")).len() < 20);
        part
    });
    let merge = |work: &str, parts: &[PathBuf]| {
        let names: Vec<String> = (0..parts.len()).map(|index| Input::name_at("answers", index)).collect();
        let data = root.path().join("data");
        let mut inputs = vec![("data", data.as_path())];
        inputs.extend(names.iter().map(String::as_str).zip(parts.iter().map(PathBuf::as_path)));
        Trial::new(&root.path().join(work), &inputs).run::<Eval>(&config(json!({})))
    };
    assert!(tree(&merge("merged", &parts).done()) == whole, "the same files");
    let hole = merge("hole", &parts[..2]).error().to_string();
    assert!(hole.contains("there is no answer to question"), "{hole}");
    let double = merge("double", &[parts.as_slice(), &parts[2..]].concat()).error().to_string();
    assert!(double.contains("occurs twice"), "{double}");
}
