//! What is said of a stage before its inputs exist is what is said when they do.

use std::collections::BTreeMap;

use super::*;
use crate::{
    contract::{
        device::Device,
        forecast::{Ahead, Forecast, Outlook, Work},
    },
    data::records::RecordSet,
    model_folder::outlook,
};

fn ask<S: Stage>(config: &Value, inputs: &[(&str, &Outlook)]) -> Forecast {
    ask_on::<S>(config, inputs, None, 1)
}

/// On so many GPUs with so many bytes of memory each, if any.
fn ask_on<S: Stage>(config: &Value, inputs: &[(&str, &Outlook)], gpu_memory: Option<u64>, gpus: usize) -> Forecast {
    let config: S::Config = serde_json::from_value(config.clone()).unwrap();
    let runtime = crate::contract::job::Runtime { micro_batch_size: 4, gpus, ..Default::default() };
    let device = gpu_memory.map_or(Device::Cpu, |_| Device::Cuda);
    let inputs = inputs.iter().copied().collect();
    S::forecast(&config, &Ahead { runtime: &runtime, device, gpu_memory, seed: 0, sources: &BTreeMap::new(), inputs })
}

#[test]
fn memory_is_known_before_anything_ran() {
    let shop = Workshop::pretrained();
    let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2});
    let phi = ask::<Download>(&json!({"source": "builtin:tiny-phi", "model": sizes}), &[]).outlook;
    let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2, "patch_size": 16});
    let siglip = ask::<Download>(&json!({"source": "builtin:tiny-siglip", "model": sizes}), &[]).outlook;
    let records = |max_length: usize| {
        let config = json!({"annotations": "pretrain.json", "template": "plain", "max_length": max_length});
        ask::<Preprocess>(&config, &[]).outlook
    };
    let there = |name: &str| outlook(&shop.path(name).join("out"));
    let (llm, vision, captions) = (there("phi"), there("siglip"), there("captions"));

    let pretrain = |llm: &Outlook, vision: &Outlook, data: &Outlook| {
        ask::<Pretrain>(&stage1(), &[("llm", llm), ("vision", vision), ("data", data)])
    };
    let (planned, known) = (pretrain(&phi, &siglip, &captions), pretrain(&llm, &vision, &captions));
    let (planned_bytes, known_bytes) = (planned.memory.unwrap().bytes, known.memory.unwrap().bytes);
    // Headers of files are not counted before they are there.
    assert!(planned_bytes.abs_diff(known_bytes) < 20_000, "{planned_bytes} and {known_bytes}");
    assert!(!known.memory.unwrap().at_most);
    let bounds = [64, 512].map(|max_length| pretrain(&phi, &siglip, &records(max_length)).memory.unwrap());
    assert!(bounds.iter().all(|bound| bound.at_most && bound.bytes >= known_bytes), "{bounds:?}: {known_bytes}");
    assert!(bounds[0].bytes < bounds[1].bytes);
    the_arithmetic_is_that_of_all_steps(&known, |max_length| pretrain(&phi, &siglip, &records(max_length)));

    let mut smaller = stage1();
    smaller["image_size"] = json!(32);
    shop.pretrain("smaller").run::<Pretrain>(&smaller).done();
    let inputs = [("llm", &phi), ("vision", &siglip), ("data", &captions)];
    let smaller = ask::<Pretrain>(&smaller, &inputs);
    assert!(smaller.memory.unwrap().bytes < planned_bytes, "fewer patches");
    let (planned_vision, known_vision) = (smaller.outlook.vision.unwrap(), there("smaller").vision.unwrap());
    assert_eq!(planned_vision.config, known_vision.config);
    assert!(planned_vision.bytes.abs_diff(known_vision.bytes) < 20_000, "{planned_vision:?} and {known_vision:?}");

    let model = there("pretrain");
    let data = there("instructions");
    let finetune =
        |config: &Value, model| ask::<Finetune>(config, &[("model", model), ("data", &data)]).memory.unwrap();
    for config in [lora(), full()] {
        let (planned, known) = (finetune(&config, &planned.outlook), finetune(&config, &model));
        assert!(planned.bytes.abs_diff(known.bytes) < 20_000, "{planned:?} and {known:?}");
    }
    let wider = json!({"mode": "lora", "lora": {"rank": 512}});
    assert!(finetune(&wider, &model).bytes > finetune(&lora(), &model).bytes + (1 << 20));
}

/// Features of held-out images are kept like those of the images that are trained on.
#[test]
fn held_out_images_take_memory() {
    let shop = Workshop::pretrained();
    let there = |name: &str| outlook(&shop.path(name).join("out"));
    let (model, data) = (there("pretrain"), there("instructions"));
    let mut measured = lora();
    measured["eval_steps"] = json!(1);
    let bytes = |config: &Value, inputs: &[(&str, &Outlook)], gpu| {
        let memory = ask_on::<Finetune>(config, inputs, gpu, 1).memory.unwrap();
        memory.gpu.unwrap_or(memory.bytes)
    };
    for gpu in [None, Some(1 << 34)] {
        let with = [("model", &model), ("data", &data), ("validation", &data)];
        let (alone, both) = (bytes(&lora(), &with[..2], gpu), bytes(&measured, &with, gpu));
        assert_eq!(bytes(&lora(), &with, gpu), alone, "without `eval_steps` no loss is measured on them");
        let vision = model.vision.as_ref().unwrap().config.clone();
        let images = RecordSet::open(&shop.path("instructions").join("out")).unwrap().meta().images;
        assert_eq!(both - alone, (images * vision.patches() * vision.hidden_size * 4) as u64, "{gpu:?}");
    }
}

#[test]
fn a_gpu_holds_the_model_and_the_host_its_files() {
    let shop = Workshop::pretrained();
    let there = |name: &str| outlook(&shop.path(name).join("out"));
    let (model, data) = (there("pretrain"), there("instructions"));
    let inputs = [("model", &model), ("data", &data)];
    let on_gpus =
        |config: &Value, gpus: usize| ask_on::<Finetune>(config, &inputs, Some(1 << 34), gpus).memory.unwrap();
    let on_gpu = |config: &Value| on_gpus(config, 1);
    let rounded = |mut config: Value| {
        config["precision"] = json!("bf16");
        config
    };
    let (host, exact, low) =
        (ask::<Finetune>(&lora(), &inputs).memory.unwrap(), on_gpu(&lora()), on_gpu(&rounded(lora())));
    let (exact_bytes, low_bytes) = (exact.gpu.unwrap(), low.gpu.unwrap());
    assert!(host.gpu.is_none() && exact.bytes < host.bytes, "{exact:?}, {host:?}");
    // What trains stays in f32; weights, features and activations take half.
    assert!(low_bytes < exact_bytes && low_bytes > exact_bytes / 2, "{low_bytes} and {exact_bytes}");
    // The moments are shared out; the sums of the gradients lie on the host.
    let [one, two] = [1, 2].map(|gpus| on_gpus(&full(), gpus));
    assert_eq!((one.gpus, two.gpus), (1, 2));
    assert!(two.gpu.unwrap() < one.gpu.unwrap() && two.bytes > one.bytes, "{one:?}, {two:?}");
}

/// The encoder is then written in f32, and its blocks run in each epoch, though what they take is kept.
#[test]
fn blocks_of_the_encoder_that_train_are_written_and_run_in_every_epoch() {
    let shop = Workshop::pretrained();
    let there = |name: &str| outlook(&shop.path(name).join("out"));
    let (model, data) = (there("pretrain"), there("instructions"));
    let with = |vision_layers: usize, epochs: usize| {
        let mut config = lora();
        config["epochs"] = json!(epochs);
        if vision_layers > 0 {
            (config["vision_layers"], config["vision_learning_rate"]) = (json!(vision_layers), json!(1e-3));
        }
        config
    };
    let config = with(1, 2);
    shop.finetune("tuned").run::<Finetune>(&config).done();
    let forecast = |config: &Value| ask::<Finetune>(config, &[("model", &model), ("data", &data)]);
    let (planned, written) = (forecast(&config).outlook.vision.unwrap(), there("tuned").vision.unwrap());
    assert_eq!(planned.config, written.config);
    assert!(planned.bytes.abs_diff(written.bytes) < 20_000, "{planned:?} and {written:?}");

    let work = |vision_layers: usize, epochs: usize| match forecast(&with(vision_layers, epochs)).work {
        Some(Work::Whole(work)) => work,
        other => panic!("{other:?}"),
    };
    let added = |epochs: usize| work(1, epochs) - work(0, epochs);
    // Once for each image less in the frozen encoder, three times as much for each in each epoch.
    assert!(added(2) > 1.9 * added(1), "{} and {}", added(2), added(1));
}

#[test]
fn what_is_not_known_is_not_guessed() {
    let nothing = outlook("there/is/none".as_ref());
    assert!(ask::<Finetune>(&lora(), &[("model", &nothing), ("data", &nothing)]).memory.is_none());
    assert!(ask::<Pretrain>(&stage1(), &[]).memory.is_none());
}

/// Of records that are there: all of it; of others: a step whose records fill the context.
fn the_arithmetic_is_that_of_all_steps(known: &Forecast, planned: impl Fn(usize) -> Forecast) {
    let Some(Work::Whole(whole)) = known.work else { panic!("{:?}", known.work) };
    let Some(Work::FullStep(short)) = planned(64).work else { panic!("{:?}", planned(64).work) };
    let Some(Work::FullStep(long)) = planned(512).work else { panic!("{:?}", planned(512).work) };
    let steps = known.steps.unwrap() as f64;
    assert!(whole > 0.0 && whole <= steps * short && short < long, "{whole}, {short}, {long}");
}
