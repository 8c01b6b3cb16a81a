//! What is asked of some rows only: the last block computes no more than these need, and gives the same.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;

use imp_model::{
    Precision,
    language::Decoder,
    layers::{Linear, LoraSettings, Pass},
    load_language,
    tensor::{self, Mat, Place, Segments},
};
use support::{PHI, assert_close, loss_and_gradients, path, places};

/// One norm and parallel branches, two norms and separate projections, stacked projections with a sliding window.
const FAMILIES: [&str; 3] = ["phi_gqa", "qwen2_mha_tied", "phi3_mha_sliding10"];
/// Positions of the two sequences.
const LENGTHS: [usize; 2] = [14, 9];
/// In both sequences, with gaps; not the last row.
const ROWS: [usize; 6] = [2, 3, 9, 13, 15, 21];

fn embedded(llm: &Decoder) -> Mat {
    let count = LENGTHS.iter().sum();
    let picks = (0..count).map(|row| (0, row * 7 % 60)).collect();
    tensor::gather(&Pass::inference().graph, &[llm.embedding()], picks)
}

fn values(mat: &Mat) -> Vec<f32> {
    mat.to_host().into_owned()
}

/// Products of few rows, and sums over fewer rows, are grouped differently. In bf16 the operands of products have the same rounding on
/// both sides, but what a device stores between them is rounded, too, and a last digit more or less can round to another side.
fn close(what: &str, place: &Place, some: &[f32], all: &[f32]) {
    let share = if place.precision == Precision::F32 { 1e-5 } else { 0.02 };
    let largest = all.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(largest > 0.0, "{what}: takes part");
    assert_close(what, some, all, share * largest);
}

/// Checks each family at each place.
fn everywhere(check: impl Fn(&str, &Place, Decoder)) {
    for (name, place) in places() {
        for family in FAMILIES {
            let mut llm = load_language(&path("extras").join(family)).unwrap();
            llm.move_to(&place);
            check(&format!("{name} {family}"), &place, llm);
        }
    }
}

#[test]
fn some_rows_are_those_of_all() {
    everywhere(|name, place, llm| {
        let (pass, segments) = (Pass::inference(), Segments::new(LENGTHS));
        let embedded = embedded(&llm);
        let all = llm.forward(&pass, &embedded, &segments);
        let expected = values(&tensor::pick_rows(&pass.graph, &all, ROWS));
        let forward = llm.forward_at(&pass, &embedded, &segments, &Arc::from(ROWS));
        let (prefilled, _) = llm.prefill(&embedded, &segments, &ROWS);
        close(name, place, &values(&forward), &expected);
        assert!(values(&prefilled) == values(&forward), "{name}: the same without a tape");

        // All positions but the first of a sequence, read on from the cache.
        let first = tensor::pick_rows(&pass.graph, &embedded, [0]);
        let rest = tensor::pick_rows(&pass.graph, &embedded, 1..LENGTHS[0]);
        let positions: Vec<usize> = (1..LENGTHS[0]).collect();
        let decode = |only: Option<&[usize]>| {
            let (nothing, mut cache) = llm.prefill(&first, &Segments::new([1]), &[]);
            assert_eq!((nothing.rows(), nothing.cols()), (0, embedded.cols()), "{name}");
            llm.decode(&rest, &positions, &vec![0; positions.len()], &mut cache, only)
        };
        let all = decode(None);
        let expected = values(&tensor::pick_rows(&pass.graph, &all, [4, 12]));
        close(&format!("{name} from the cache"), place, &values(&decode(Some(&[4, 12]))), &expected);
    });
}

/// With dropout, which depends on a row's place in its sequence, and with gradient checkpointing.
#[test]
fn gradients_of_some_rows_are_those_of_all() {
    everywhere(|name, place, mut llm| {
        llm.adapt(&LoraSettings::new(4, 8.0, 0.3), &[], 1).unwrap();
        move_away_from_zero(&mut llm);
        let embedded = embedded(&llm);
        for checkpointing in [false, true] {
            let gradients = |some: bool| {
                let segments = Segments::new(LENGTHS);
                let pass = Pass::training(3, 0).on_rows(segments.sequence_positions());
                let pass = if checkpointing { pass.with_gradient_checkpointing() } else { pass };
                let hidden = if some {
                    llm.forward_at(&pass, &embedded, &segments, &Arc::from(ROWS))
                } else {
                    tensor::pick_rows(&pass.graph, &llm.forward(&pass, &embedded, &segments), ROWS)
                };
                let logits = llm.logits(&pass.on_some(&ROWS), &hidden);
                let loss = tensor::cross_entropy(&pass.graph, &logits, vec![1, 2, 3, 4, 5, 6], ROWS.len());
                let mut computed = pass.graph.backward(&loss);
                let mats: Vec<Mat> = llm.linears().flat_map(Linear::parameters).collect();
                (loss.item(), mats.iter().map(|mat| values(&computed.take(mat))).collect::<Vec<_>>())
            };
            let ((loss, some), (expected, all)) = (gradients(true), gradients(false));
            close(&format!("{name} loss"), place, &[loss], &[expected]);
            for (number, (some, all)) in some.iter().zip(&all).enumerate() {
                close(&format!("{name} parameter {number}"), place, some, all);
            }
        }
    });
}

/// B of a new adapter is zero, and so is the gradient of its A.
fn move_away_from_zero(llm: &mut Decoder) {
    for lora in llm.linears_mut().filter_map(|linear| linear.lora.as_mut()) {
        let values = support::random(lora.b.rows() as u64, lora.b.count());
        let b = Mat::from_host(lora.b.rows(), lora.b.cols(), values.iter().map(|value| 0.1 * value).collect());
        lora.b = b.to(&lora.b.place()).trainable();
    }
}

/// A part of a batch may have no labels.
#[test]
fn no_rows_change_nothing() {
    for (name, place) in places() {
        let mut batch = PHI.batch();
        batch.labels.iter_mut().flatten().for_each(|label| *label = -100);
        let mut model = PHI.model_with_lora();
        model.move_to(&place);
        let (loss, gradients) = loss_and_gradients(&mut model, &batch, &Pass::training(0, 0));
        assert_eq!(loss.to_bits(), 0, "{name}");
        assert!(gradients.iter().all(|gradient| values(gradient).iter().all(|value| *value == 0.0)), "{name}");
    }
}
