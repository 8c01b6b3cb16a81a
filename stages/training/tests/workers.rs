//! Several workers: whatever their number, the result is the same to the bit. Here they compute on the CPU; `tests/e2e/gpu.rs` has
//! those on devices.

use super::*;

#[test]
fn any_number_of_workers_gives_the_same_bits() {
    let shop = Workshop::pretrained();
    let mut odd = full();
    // Batches of 7, 7, ... and a rest; some records have no image.
    odd["global_batch_size"] = json!(7);
    odd["precision"] = json!("bf16");
    (odd["vision_layers"], odd["vision_learning_rate"]) = (json!(1), json!(1e-3));
    for (name, config, size) in [("lora", methods::all(), 1), ("full", full(), 2), ("odd", odd, 3)] {
        let ran = |workers: usize| {
            let name = format!("{name}{workers}");
            // What the backward pass computes twice it computes with the same dropout and noise.
            let recompute = Some(size == 1);
            let trial = shop.finetune(&name).micro_batch(size).workers(workers);
            let trial = trial.runtime(|runtime| runtime.gradient_checkpointing = recompute);
            (tree(&trial.run::<Finetune>(&config).done()), shop.metrics(&name))
        };
        let (weights, metrics) = ran(1);
        for workers in [2, 3] {
            let (ours, lines) = ran(workers);
            assert_eq!(lines, metrics, "losses of {name} with {workers} workers");
            assert_eq!(ours, weights, "{name} with {workers} workers");
        }
    }
    let once = tree(&shop.pretrain("once").micro_batch(1).run::<Pretrain>(&stage1()).done());
    let three = tree(&shop.pretrain("three").micro_batch(1).workers(3).run::<Pretrain>(&stage1()).done());
    assert_eq!(three, once, "projector");
}

#[test]
fn a_run_goes_on_with_another_number_of_workers() {
    let shop = Workshop::pretrained();
    for (name, config) in [("lora", methods::all()), ("full", full())] {
        let trial = |name: &str, workers: usize| shop.finetune(name).micro_batch(1).workers(workers);
        let once = trial(&format!("{name}_once"), 1).run::<Finetune>(&config).done();
        for (first, then) in [(2, 1), (2, 3), (1, 2)] {
            let name = format!("{name}_{first}_{then}");
            let error = trial(&name, first).cancelled_after(2).run::<Finetune>(&config).error();
            assert!(matches!(error, StageError::Cancelled), "{error}");
            let outcome = trial(&name, then).run::<Finetune>(&config);
            assert_eq!(outcome.warnings(), "", "the checkpoint was used");
            assert_eq!(tree(&outcome.done()), tree(&once), "{name}");
        }
    }
}

#[test]
fn held_out_records_are_shared_out_and_the_best_weights_kept() {
    let shop = Workshop::pretrained();
    let config = json!({
        "mode": "full", "global_batch_size": 4, "epochs": 2, "learning_rate": 0.3, "lr_scheduler": "constant",
        "warmup_steps": 0, "max_grad_norm": 0.0, "eval_steps": 2, "keep_best": true,
    });
    let ran = |name: &str, workers: usize| {
        let inputs = [("model", "pretrain"), ("data", "instructions"), ("validation", "instructions")];
        let outcome = shop.trial(name, &inputs).micro_batch(1).workers(workers).run::<Finetune>(&config);
        let best = (outcome.figure("best_step"), outcome.figure("validation_loss"));
        (best, shop.metrics(name), tree(&outcome.done()))
    };
    assert_eq!(ran("two", 2), ran("one", 1));
}

#[test]
fn workers_without_work_are_told_about_and_do_no_harm() {
    let shop = Workshop::pretrained();
    let ran = |name: &str, size: usize, workers: usize| {
        let outcome = shop.finetune(name).micro_batch(size).workers(workers).run::<Finetune>(&lora());
        let warnings = outcome.warnings();
        (warnings, tree(&outcome.done()))
    };
    let (silent, one) = ran("one", 4, 1);
    assert_eq!(silent, "");
    let (said, two) = ran("two", 4, 2);
    assert!(said.contains("of its 2 GPUs only 1 can have work: a batch of 4 has 1 part(s) of up to 4"), "{said}");
    assert!(said.contains("`micro_batch_size = 2`"), "{said}");
    assert_eq!(two, one);
    let (said, _) = ran("many", 1, 6);
    assert!(said.contains("of its 6 GPUs only 4 can have work") && said.contains("`gpus = 4` is enough"), "{said}");
}

/// Held-out records are read by the workers. One of them meets an image that can't be decoded: the others end, and the stage has its
/// words.
#[test]
fn the_error_of_one_worker_is_that_of_the_stage() {
    let shop = Workshop::pretrained();
    let broken = shop.path("broken/out");
    fs::create_dir_all(&broken).unwrap();
    for (name, bytes) in tree(&shop.path("instructions/out")) {
        fs::write(broken.join(name), bytes).unwrap();
    }
    let mut images = fs::read(broken.join("images.bin")).unwrap();
    let half = images.len() / 2;
    images[half..].fill(0);
    fs::write(broken.join("images.bin"), images).unwrap();
    let mut config = lora();
    config["eval_steps"] = json!(1);
    let inputs = [("model", "pretrain"), ("data", "instructions"), ("validation", "broken")];
    let error = shop.trial("failed", &inputs).micro_batch(1).workers(2).run::<Finetune>(&config).error();
    assert!(error.to_string().contains("its image can't be decoded"), "{error}");
}
