//! Several data sets in one training.

use std::collections::HashMap;

use super::*;
use crate::{data::mixture::Mixture, training::batches::Batches};

const BOTH: [(&str, &str); 3] = [("model", "pretrain"), ("data[0]", "captions"), ("data[1]", "instructions")];

fn with_weights(weights: &Value) -> Value {
    let mut config = lora();
    config["data_weights"] = weights.clone();
    config
}

#[test]
fn a_set_of_weight_zero_might_as_well_not_be_there() {
    let shop = Workshop::pretrained();
    let alone = shop.finetune("alone").run::<Finetune>(&lora()).done();
    let mixed = shop.trial("mixed", &BOTH).run::<Finetune>(&with_weights(&json!([0, 1]))).done();
    assert_eq!(tree(&mixed), tree(&alone));
    assert_eq!(shop.metrics("mixed"), shop.metrics("alone"));
}

#[test]
fn a_mixture_goes_on_where_it_was_and_may_have_features_in_one_set_only() {
    let shop = Workshop::pretrained();
    let inputs = [("data", "shapes"), ("tokenizer", "phi"), ("cache_vision_features", "siglip")];
    let config = json!({"annotations": "pretrain.json", "template": "phi2"});
    shop.trial("seen", &inputs).run::<Preprocess>(&config).done();
    shop.trial("unseen", &inputs[..2]).run::<Preprocess>(&config).done();
    let config = with_weights(&json!([0.5, 1.5]));
    let mixture = |name: &str, first: &str| {
        shop.trial(name, &[("model", "pretrain"), ("data[0]", first), ("data[1]", "instructions")])
    };
    let whole = mixture("whole", "unseen").run::<Finetune>(&config).done();
    let often = interrupted::<Finetune>(&config, &[1, 2], || mixture("often", "unseen")).done();
    assert_eq!(tree(&often), tree(&whole));
    let features = mixture("features", "seen").run::<Finetune>(&config).done();
    assert_eq!(weights(&features), weights(&whole));
}

#[test]
fn an_epoch_has_each_record_as_often_as_its_weight_says() {
    let shop = Workshop::new();
    let sets = ["captions", "instructions"].map(|name| RecordSet::open(&shop.path(name).join("out")).unwrap());
    let [captions, instructions] = [sets[0].len(), sets[1].len()];
    let data = Mixture::new(sets.into(), &[0.5, 2.0]).unwrap();
    assert_eq!((data.len(), data.images()), (captions + instructions, 2 * data.sets().next().unwrap().meta().images));
    for grouped in [false, true] {
        let config = json!({"global_batch_size": 3, "epochs": 2, "group_by_modality_length": grouped});
        let config: crate::finetune::Config = serde_json::from_value(config).unwrap();
        let steps = Batches::new(&config.recipe(), &data, 42).steps;
        let epochs: Vec<Vec<usize>> =
            steps.chunks(steps.len() / 2).map(|steps| steps.iter().flatten().copied().collect()).collect();
        let halves: Vec<Vec<usize>> = epochs
            .iter()
            .map(|epoch| {
                let mut seen: HashMap<usize, usize> = HashMap::new();
                for record in epoch {
                    *seen.entry(*record).or_default() += 1;
                }
                assert!((captions..data.len()).all(|record| seen.remove(&record) == Some(2)), "{seen:?}");
                assert!(seen.values().all(|count| *count == 1), "{seen:?}");
                let mut half: Vec<usize> = seen.into_keys().collect();
                half.sort_unstable();
                half
            })
            .collect();
        assert!(halves.iter().all(|half| half.len() == captions.div_ceil(2)), "{halves:?}");
        assert_ne!(halves[0], halves[1], "another half in each epoch");
    }
}

#[test]
fn sets_that_do_not_fit_together_are_refused() {
    let shop = Workshop::pretrained();
    let config = json!({"annotations": "pretrain.json", "template": "phi2", "image_aspect_ratio": "pad"});
    shop.trial("padded", &[("data", "shapes"), ("tokenizer", "phi")]).run::<Preprocess>(&config).done();
    let inputs = [("model", "pretrain"), ("data[0]", "instructions"), ("data[1]", "padded")];
    let error = shop.trial("odd", &inputs).run::<Finetune>(&lora()).error().to_string();
    assert!(error.contains("data[1]") && error.contains("`\"pad\"`"), "{error}");
    let inputs = [("model", "pretrain"), ("data", "instructions"), ("validation", "padded")];
    let mut config = lora();
    config["eval_steps"] = json!(1);
    let error = shop.trial("held_out", &inputs).run::<Finetune>(&config).error().to_string();
    assert!(error.contains("`validation` have another `image_aspect_ratio`"), "{error}");

    let check = |weights: Value, data: usize| {
        let config = serde_json::from_value(with_weights(&weights)).unwrap();
        Finetune::check(&config).and_then(|()| Finetune::check_inputs(&config, &|_| data))
    };
    assert!(check(json!([1, 2]), 2).is_ok());
    for (weights, data) in [(json!([1, 2]), 1), (json!([1]), 2), (json!([1, -1]), 2)] {
        assert_eq!(check(weights, data).unwrap_err().key, "data_weights");
    }
}

#[test]
fn a_part_of_an_epoch_is_its_first_steps() {
    let shop = Workshop::new();
    let data = Mixture::new(vec![RecordSet::open(&shop.path("instructions/out")).unwrap()], &[]).unwrap();
    let steps = |epochs: Value| {
        let config = json!({"global_batch_size": 5, "epochs": epochs});
        let config: crate::finetune::Config = serde_json::from_value(config).unwrap();
        Batches::new(&config.recipe(), &data, 42).steps
    };
    let (two, per_epoch) = (steps(json!(2)), steps(json!(1)).len());
    assert_eq!((data.len(), per_epoch), (12, 3));
    assert_eq!(steps(json!(2.0)), two);
    assert_eq!(steps(json!(0.5)), two[..2]);
    assert_eq!(steps(json!(1.4)), two[..5], "4.2 steps");
    for (epochs, written) in [(json!(2), "2"), (json!(2.0), "2"), (json!(0.5), "0.5")] {
        let config: crate::finetune::Config = serde_json::from_value(json!({"epochs": epochs})).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap()["epochs"].to_string(), written, "as keys have it");
    }
}
