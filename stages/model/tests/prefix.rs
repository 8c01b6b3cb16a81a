//! Computing the common prefix of prompts only once does not change the answers.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::ops::ControlFlow;

use imp_model::{
    Context, GenerateOptions, IMAGE_TOKEN, Sample,
    layers::Pass,
    load_language,
    tensor::{self, KvCache, Segments},
};
use support::{PHI, QWEN2, assert_close, path};

#[test]
fn questions_about_one_image_have_the_same_answers_alone() {
    for family in [PHI, QWEN2] {
        let (model, batch) = (family.model(), family.batch());
        let features = model.encode_images(&batch.images);
        let prefix = [5, 6, 7, IMAGE_TOKEN, 8, 9];
        let suffixes: [&[i32]; 5] = [&[10, 11], &[12], &[10, 11, 12, 13, 14, 15, 16, 17, 18], &[19, 20], &[21]];
        let ids: Vec<Vec<i32>> = suffixes.iter().map(|suffix| [&prefix, *suffix].concat()).collect();
        let images = [[0], [0], [0], [1], [1]];
        let samples: Vec<Sample<'_>> =
            ids.iter().zip(&images).map(|(input_ids, images)| Sample { input_ids, labels: &[], images }).collect();
        let options = GenerateOptions { max_new_tokens: 12, stop: vec![3, 17], ..GenerateOptions::default() };
        let together = model.generate(&samples, &features, &options).unwrap();
        let alone: Vec<_> =
            samples.iter().map(|sample| model.generate(&[*sample], &features, &options).unwrap().remove(0)).collect();
        assert_eq!(together, alone);
        assert!(together.iter().any(|answer| *answer != together[0]), "the answers must not all be equal");
    }
}

/// Positions after a shared prefix have the same hidden states as in the whole sequence, also with sliding windows and
/// grouped queries.
#[test]
fn a_shared_prefix_gives_the_same_hidden_states() {
    for name in ["phi_gqa", "qwen2_mha_tied", "phi3_mha_sliding10"] {
        let llm = load_language(&path("extras").join(name)).unwrap();
        let graph = Pass::inference().graph;
        let picks: Vec<(usize, usize)> = (0..30).map(|row| (0, row * 7 % 60)).collect();
        let embedded = tensor::gather(&graph, &[llm.embedding()], picks);
        let whole = llm.forward(&Pass::inference(), &embedded, &Segments::new(vec![30]));
        for prefix in [1, 8, 12, 29] {
            let first = tensor::pick_rows(&graph, &embedded, 0..prefix);
            let (_, cache) = llm.prefill(&first, &Segments::new(vec![prefix]), &[]);
            let twice = |layer: Vec<KvCache>| vec![layer.into_iter().next().unwrap().into_shared(); 2];
            let mut cache: Vec<Vec<KvCache>> = cache.into_iter().map(twice).collect();
            // The second sequence continues differently, which must not affect the first.
            let rows: Vec<usize> = (prefix..30).chain([prefix - 1, prefix - 1]).collect();
            let positions: Vec<usize> = (prefix..30).chain([prefix, prefix + 1]).collect();
            let which: Vec<usize> = (prefix..30).map(|_| 0).chain([1, 1]).collect();
            let rest = tensor::pick_rows(&graph, &embedded, rows);
            let hidden = llm.decode(&rest, &positions, &which, &mut cache, None);
            let width = hidden.cols();
            let (ours, theirs) = (hidden.to_host(), whole.to_host());
            let (ours, theirs) = (&ours[..(30 - prefix) * width], &theirs[prefix * width..]);
            assert_close(&format!("{name} from {prefix}"), ours, theirs, 1e-4);
        }
    }
}

fn about_first_image(input_ids: &[i32]) -> Sample<'_> {
    Sample { input_ids, labels: &[], images: &[0] }
}

/// Reading on after what was read, after another end, or in pieces gives the answers of reading everything anew.
#[test]
fn a_context_is_read_on_as_if_it_was_read_anew() {
    for family in [PHI, QWEN2] {
        let (model, batch) = (family.model(), family.batch());
        let features = model.encode_images(&batch.images);
        let patches = model.vision.config.patches();
        let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
        let anew = |ids: &[i32]| model.generate(&[about_first_image(ids)], &features, &options).unwrap().remove(0);
        let mut context = Context::default();
        let mut read_on = |keep: usize, ids: &[i32]| {
            context.truncate(keep);
            let go_on = |_: &[u32]| ControlFlow::Continue(());
            let answer =
                model.continue_from(&mut context, &about_first_image(ids), &features, &options, go_on).unwrap();
            (answer, context.positions())
        };

        let first = [5, 6, IMAGE_TOKEN, 8, 9];
        let (answer, positions) = read_on(0, &first);
        assert_eq!(answer, anew(&first));
        // Nothing has followed the last token.
        assert_eq!(positions, 4 + patches + 5);
        let said: Vec<i32> = answer.iter().map(|id| *id as i32).collect();
        let more = [&said[5..], &[10, 11, 12]].concat();
        let second = [&first[..], &said, &[10, 11, 12]].concat();
        let (next, positions) = read_on(usize::MAX, &more);
        assert_eq!(next, anew(&second));
        assert_eq!(positions, 4 + patches + 6 + 3 + 5);
        // Another end, from within the first question.
        let other = [&first[..4], &[20, 21, 22]].concat();
        assert_eq!(read_on(3 + patches, &other[4..]).0, anew(&other));
        assert_ne!(anew(&other), anew(&second), "the answers must differ");
    }
}

#[test]
fn a_long_prompt_is_read_in_pieces_and_can_be_stopped_between_them() {
    let mut model = QWEN2.model();
    model.config.tokenizer_model_max_length = 2000;
    let features = tensor::Mat::zeros(0, model.vision.config.hidden_size);
    let ids: Vec<i32> = (0..1100).map(|position| position * 7 % 60).collect();
    let sample = Sample { input_ids: &ids, labels: &[], images: &[] };
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let mut context = Context::default();
    let mut calls = 0;
    let mut until = |context: &mut Context, most: usize, sample: &Sample<'_>| {
        let on_token = |answer: &[u32]| {
            calls += 1;
            if calls > most || answer.len() > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        model.continue_from(context, sample, &features, &options, on_token).unwrap()
    };
    assert!(until(&mut context, 1, &sample).is_empty());
    assert_eq!(context.positions(), 512, "one piece was read");
    let rest = Sample { input_ids: &ids[512..], ..sample };
    let answer = until(&mut context, usize::MAX, &rest);
    assert_eq!(answer, model.generate(&[sample], &features, &options).unwrap()[0][..4]);
    assert_eq!(context.positions(), 1103);
}
