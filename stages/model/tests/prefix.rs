//! What prompts share goes through the model once, and that changes no answer.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use imp_model::{
    GenerateOptions, IMAGE_TOKEN, Sample,
    layers::Pass,
    load_language,
    tensor::{self, KvCache, Segments},
};
use support::{PHI, QWEN2, assert_close, path};

#[test]
fn questions_about_one_image_are_answered_as_alone() {
    for family in [PHI, QWEN2] {
        let (model, batch) = (family.model(), family.batch());
        let features = model.encode_images(&batch.images);
        let beginning = [5, 6, 7, IMAGE_TOKEN, 8, 9];
        let endings: [&[i32]; 5] = [&[10, 11], &[12], &[10, 11, 12, 13, 14, 15, 16, 17, 18], &[19, 20], &[21]];
        let ids: Vec<Vec<i32>> = endings.iter().map(|ending| [&beginning, *ending].concat()).collect();
        let images = [[0], [0], [0], [1], [1]];
        let samples: Vec<Sample<'_>> =
            ids.iter().zip(&images).map(|(input_ids, images)| Sample { input_ids, labels: &[], images }).collect();
        let options = GenerateOptions { max_new_tokens: 12, stop: vec![3, 17], ..GenerateOptions::default() };
        let together = model.generate(&samples, &features, &options);
        let alone: Vec<_> =
            samples.iter().map(|sample| model.generate(&[*sample], &features, &options).remove(0)).collect();
        assert_eq!(together, alone);
        assert!(together.iter().any(|answer| *answer != together[0]), "they must not have one answer");
    }
}

/// Positions that see a shared beginning have the hidden states that they have in the whole sequence, also where a window or
/// grouped queries are in between.
#[test]
fn a_shared_beginning_gives_the_same_hidden_states() {
    for name in ["phi_gqa", "qwen2_mha_tied", "phi3_mha_sliding10"] {
        let llm = load_language(&path("extras").join(name)).unwrap();
        let graph = Pass::inference().graph;
        let picks: Vec<(usize, usize)> = (0..30).map(|at| (0, at * 7 % 60)).collect();
        let embedded = tensor::gather(&graph, &[llm.embedding()], picks);
        let whole = llm.forward(&Pass::inference(), &embedded, &Segments::new(vec![30]));
        for beginning in [1, 8, 12, 29] {
            let first = tensor::pick_rows(&graph, &embedded, 0..beginning);
            let (_, cache) = llm.prefill(&first, &Segments::new(vec![beginning]));
            let twice = |layer: Vec<KvCache>| vec![layer.into_iter().next().unwrap().into_shared(); 2];
            let mut cache: Vec<Vec<KvCache>> = cache.into_iter().map(twice).collect();
            // The second sequence continues differently: it must not touch the first.
            let rows: Vec<usize> = (beginning..30).chain([beginning - 1, beginning - 1]).collect();
            let positions: Vec<usize> = (beginning..30).chain([beginning, beginning + 1]).collect();
            let which: Vec<usize> = (beginning..30).map(|_| 0).chain([1, 1]).collect();
            let rest = tensor::pick_rows(&graph, &embedded, rows);
            let hidden = llm.decode(&rest, &positions, &which, &mut cache);
            let width = hidden.cols();
            let (ours, theirs) = (hidden.to_host(), whole.to_host());
            let (ours, theirs) = (&ours[..(30 - beginning) * width], &theirs[beginning * width..]);
            assert_close(&format!("{name} from {beginning}"), ours, theirs, 1e-4);
        }
    }
}
