//! The backward pass of a whole model: when gradients are final, and what is freed.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{collections::BTreeSet, sync::mpsc};

use imp_model::{
    layers::{Parameter, Pass},
    tensor::Mat,
};
use support::{PHI, places, values};

/// The gradients of a block are passed on before those of the block below are computed, and are those of the whole pass.
#[test]
fn gradients_are_passed_on_while_the_backward_pass_goes_on() {
    for ((name, place), recompute) in places().into_iter().flat_map(|place| [(place.clone(), false), (place, true)]) {
        let mut model = PHI.trainable(true, &place);
        let pass = || {
            let pass = Pass::training(0, 0);
            if recompute { pass.with_gradient_checkpointing() } else { pass }
        };
        let batch = PHI.batch();
        let (images, features) = (batch.image_numbers(), model.encode_images(&batch.images));
        let samples = batch.samples(&images);
        let (_, expected) = model.loss_and_gradients(&pass(), &samples, &features, 1);
        let pass = pass();
        let loss = model.loss(&pass, &samples, &features, 1);
        let (sender, given) = mpsc::channel();
        model.backward(&pass.graph, &loss, move |gradients| sender.send(gradients).unwrap());
        let given: Vec<Vec<(usize, Mat)>> = given.into_iter().collect();

        let mut blocks = Vec::new();
        model.trainable(&mut |Parameter { name, .. }, _| {
            let layer = name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse::<usize>().ok());
            blocks.push(layer);
        });
        let of = |gradients: &Vec<(usize, Mat)>| -> BTreeSet<Option<usize>> {
            gradients.iter().map(|(number, _)| blocks[*number]).collect()
        };
        let layers = model.llm.config.num_hidden_layers;
        let blocks_of_all = std::iter::once(None).chain((0..layers).rev().map(Some)).chain([None]);
        let order: Vec<_> = blocks_of_all.map(|layer| [layer].into()).collect();
        assert_eq!(given.iter().map(of).collect::<Vec<_>>(), order, "{name}: head, the last block, ..., projector");
        let mut all: Vec<(usize, Mat)> = given.into_iter().flatten().collect();
        all.sort_by_key(|(number, _)| *number);
        assert!(all.iter().map(|(number, _)| *number).eq(0..expected.len()), "{name}: each once");
        let all: Vec<Mat> = all.into_iter().map(|(_, gradient)| gradient).collect();
        assert_eq!(values(&all), values(&expected), "{name}");
    }
}

/// What a forward pass has recorded is freed without a backward pass: nothing that is recorded holds the record.
#[test]
fn a_record_that_is_not_used_is_freed() {
    for ((name, place), recompute) in places().into_iter().flat_map(|place| [(place.clone(), false), (place, true)]) {
        let Some(device) = place.device.clone() else { continue };
        let model = PHI.trainable(true, &place);
        let batch = PHI.batch();
        let (images, features) = (batch.image_numbers(), model.encode_images(&batch.images));
        let before = device.live_bytes();
        let pass = Pass::training(0, 0);
        let pass = if recompute { pass.with_gradient_checkpointing() } else { pass };
        let loss = model.loss(&pass, &batch.samples(&images), &features, 1);
        assert!(device.live_bytes() > before, "{name}");
        drop((pass, loss));
        assert_eq!(device.live_bytes(), before, "{name}");
    }
}
