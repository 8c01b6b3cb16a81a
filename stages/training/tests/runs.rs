//! Runs that are stopped, cut into parts, or looked at on the way end as they should.

use super::*;

#[test]
fn a_run_that_was_stopped_ends_as_one_that_was_not() {
    let shop = Workshop::pretrained();
    let once = shop.finetune("once").run::<Finetune>(&lora()).done();
    let often = interrupted::<Finetune>(&lora(), &[1, 2, 1], || shop.finetune("often")).done();
    assert_eq!(tree(&once), tree(&often), "LoRA");
    assert_eq!(shop.metrics("once"), shop.metrics("often"), "each step is logged once");
    // The figures for TensorBoard, of which each takes as many bytes whatever it is.
    let events = |name: &str| fs::metadata(shop.path(name).join(crate::contract::job::EVENTS)).unwrap().len();
    assert_eq!(events("once"), events("often"));
    let once = shop.finetune("full").run::<Finetune>(&full()).done();
    let often = interrupted::<Finetune>(&full(), &[2], || shop.finetune("full_often")).done();
    assert_eq!(tree(&once), tree(&often), "full");
    let once = shop.path("pretrain/out");
    let often = interrupted::<Pretrain>(&stage1(), &[1, 1], || shop.pretrain("pretrain_often")).done();
    assert_eq!(tree(&once), tree(&often), "projector");
}

#[test]
fn a_damaged_checkpoint_is_told_about_and_not_used() {
    let shop = Workshop::pretrained();
    let once = shop.finetune("once").run::<Finetune>(&lora()).done();
    shop.finetune("damaged").cancelled_after(2).run::<Finetune>(&lora()).error();
    let saved = fs::read_dir(shop.path("damaged/checkpoint")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&saved).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&saved, bytes).unwrap();
    let outcome = shop.finetune("damaged").run::<Finetune>(&lora());
    assert!(outcome.warnings().contains("ignored a damaged checkpoint"), "{}", outcome.warnings());
    assert!(outcome.warnings().contains("its content has changed since it was written"));
    assert_eq!(tree(&outcome.done()), tree(&once));
    assert_eq!(shop.metrics("damaged"), shop.metrics("once"));
}

/// The micro-batch is not part of a stage's key, so it must not matter: neither for the gradients, nor for what
/// dropout drops.
#[test]
fn micro_batches_add_up_to_the_batch() {
    let shop = Workshop::pretrained();
    let config = json!({
        "mode": "lora", "global_batch_size": 6, "max_steps": 3, "warmup_ratio": 0.0, "learning_rate": 1e-3,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.3},
    });
    let losses = |name: &str, size: usize| {
        shop.finetune(name).micro_batch(size).run::<Finetune>(&config).done();
        shop.metrics(name).iter().map(|line| [line["loss"], line["grad_norm"]]).collect::<Vec<_>>()
    };
    let whole = losses("whole", 6);
    assert_eq!(whole.len(), 3, "a line for each step");
    for (name, size) in [("ones", 1), ("uneven", 4)] {
        let parts = losses(name, size);
        assert_eq!(parts.len(), whole.len(), "{name}");
        for (ours, theirs) in parts.iter().flatten().zip(whole.iter().flatten()) {
            // Sums in another order, in f32, through three steps.
            assert!((ours - theirs).abs() < 2e-5 * theirs, "{name}: {ours} instead of {theirs}");
        }
    }
}

/// Nor the number of threads, which says how many parts of a batch are computed at the same time.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let shop = Workshop::pretrained();
    for (name, config) in [("lora", methods::all()), ("full", full())] {
        let ran = |threads: usize| {
            let name = format!("{name}{threads}");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let weights = pool.install(|| tree(&shop.finetune(&name).micro_batch(1).run::<Finetune>(&config).done()));
            (weights, shop.metrics(&name))
        };
        let alone = ran(1);
        for threads in [2, 3, 5] {
            assert_eq!(ran(threads), alone, "{name} with {threads} threads");
        }
    }
}

#[test]
fn the_best_weights_are_those_of_the_step_with_the_smallest_held_out_loss() {
    let shop = Workshop::pretrained();
    let validated = |name: &str| {
        shop.trial(name, &[("model", "pretrain"), ("data", "instructions"), ("validation", "instructions")])
    };
    // So large a learning rate that what comes after some good steps is worse.
    let base = json!({
        "mode": "full", "global_batch_size": 4, "epochs": 3, "learning_rate": 0.3, "lr_scheduler": "constant",
        "warmup_steps": 0, "max_grad_norm": 0.0,
    });
    let with = |more: Value| {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let keeping = with(json!({"eval_steps": 2, "keep_best": true}));
    let outcome = validated("best").run::<Finetune>(&keeping);
    let (best, loss) = (outcome.figure("best_step") as usize, outcome.figure("validation_loss"));
    let kept = outcome.done();
    let lines = shop.metrics("best");
    let seen: Vec<(usize, f64)> =
        lines.iter().filter_map(|line| Some((line["step"] as usize, *line.get("validation_loss")?))).collect();
    assert_eq!(seen.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 6, 8, 9]);
    assert!(seen.iter().all(|(_, other)| *other >= loss) && seen.contains(&(best, loss)), "{best}, {loss}: {seen:?}");
    assert!(best < 9, "the last step is not the best: {seen:?}");
    let until_then = shop.finetune("until_then").run::<Finetune>(&with(json!({"max_steps": best}))).done();
    assert_eq!(weights(&kept), weights(&until_then));

    // Each second step's request to stop comes before the held-out loss is measured: it is saved that this is due.
    validated("often").cancelled_after(2).run::<Finetune>(&keeping).error();
    let saved = fs::read_dir(shop.path("often/checkpoint")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(saved.into_iter().any(|name| name.to_string_lossy().starts_with("step-000000002-")));
    let often = interrupted::<Finetune>(&keeping, &[1, 3], || validated("often")).done();
    assert_eq!(tree(&kept), tree(&often));
    assert_eq!(shop.metrics("often"), lines);

    // Where the newest checkpoint is damaged, an older one still has the weights that were the best then.
    let several = |runtime: &mut crate::contract::job::Runtime| {
        (runtime.checkpoint_steps, runtime.keep_checkpoints) = (1, 3);
    };
    validated("damaged").runtime(several).cancelled_after(4).run::<Finetune>(&keeping).error();
    let entries = fs::read_dir(shop.path("damaged/checkpoint")).unwrap().map(|entry| entry.unwrap().path());
    let is_step = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("step-");
    let mut saved: Vec<PathBuf> = entries.filter(is_step).collect();
    saved.sort();
    assert_eq!(saved.len(), 3);
    fs::write(&saved[2], "damaged").unwrap();
    let outcome = validated("damaged").runtime(several).run::<Finetune>(&keeping);
    assert_eq!(outcome.warnings().matches("ignored a damaged checkpoint").count(), 1, "{}", outcome.warnings());
    assert_eq!(tree(&kept), tree(&outcome.done()));

    // So where the best weights are: no checkpoint that names them is used.
    validated("lost").cancelled_after(4).run::<Finetune>(&keeping).error();
    let entries = fs::read_dir(shop.path("lost/checkpoint")).unwrap().map(|entry| entry.unwrap().path());
    let bests: Vec<PathBuf> =
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("best-")).collect();
    assert!(!bests.is_empty());
    for best in bests {
        let mut bytes = fs::read(&best).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&best, bytes).unwrap();
    }
    let outcome = validated("lost").run::<Finetune>(&keeping);
    assert!(outcome.warnings().contains("the best weights so far is missing"), "{}", outcome.warnings());
    assert_eq!(tree(&kept), tree(&outcome.done()));
}

#[test]
fn held_out_records_must_be_given_and_best_weights_looked_for() {
    let shop = Workshop::pretrained();
    let config = serde_json::from_value(json!({"eval_steps": 5})).unwrap();
    let issue = Finetune::check_inputs(&config, &|name| usize::from(name != "validation")).unwrap_err();
    assert_eq!(issue.key, "eval_steps");
    let unused =
        shop.trial("unused", &[("model", "pretrain"), ("data", "instructions"), ("validation", "instructions")]);
    let warnings = unused.run::<Finetune>(&json!({"max_steps": 1})).warnings();
    assert!(warnings.contains("`validation` is not used"), "{warnings}");
    // One step of warmup begins at 0, as in transformers: that nothing was learnt must not go unnoticed.
    assert!(warnings.contains("all 1 step(s) are warmup"), "{warnings}");
    let config = serde_json::from_value(json!({"keep_best": true})).unwrap();
    assert_eq!(Finetune::check(&config).unwrap_err().key, "keep_best");
}

/// Neither of them is part of a key.
#[test]
fn runtime_settings_change_no_result() {
    let shop = Workshop::pretrained();
    let usual = shop.finetune("usual").run::<Finetune>(&lora()).done();
    let again = shop.finetune("again").runtime(|runtime| runtime.gradient_checkpointing = Some(true));
    assert_eq!(tree(&again.run::<Finetune>(&lora()).done()), tree(&usual));
    let every =
        |runtime: &mut crate::contract::job::Runtime| (runtime.checkpoint_steps, runtime.keep_checkpoints) = (1, 3);
    let kept = shop.finetune("kept").runtime(every).run::<Finetune>(&lora()).done();
    assert_eq!(tree(&kept), tree(&usual));
    let mut names: Vec<String> = fs::read_dir(shop.path("kept/checkpoint"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap()[..14].to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["step-000000004", "step-000000005", "step-000000006"]);
}

#[test]
fn damage_to_side_files_does_not_stop_training() {
    let shop = Workshop::pretrained();
    let once = shop.finetune("once").run::<Finetune>(&lora()).done();
    for tail in [b"\xff\xfe{\"step\": 9".as_slice(), b"{\"step\": 99", b"\n\x80\n", b"[1]\n"] {
        shop.finetune("damaged").cancelled_after(2).run::<Finetune>(&lora()).error();
        let metrics = shop.path("damaged/metrics.jsonl");
        let mut bytes = fs::read(&metrics).unwrap();
        bytes.extend_from_slice(tail);
        fs::write(&metrics, bytes).unwrap();
        let outcome = shop.finetune("damaged").run::<Finetune>(&lora());
        assert!(outcome.warnings().contains("cut off from the first damaged line"), "{}", outcome.warnings());
        assert_eq!(tree(&outcome.done()), tree(&once));
        assert_eq!(shop.metrics("damaged"), shop.metrics("once"));
        fs::remove_dir_all(shop.path("damaged")).unwrap();
    }
    // A folder in place of the newest checkpoint: the run starts from an earlier one, and saves the same step again.
    shop.finetune("damaged").cancelled_after(2).run::<Finetune>(&lora()).error();
    let saved = fs::read_dir(shop.path("damaged/checkpoint")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&saved).unwrap();
    fs::create_dir_all(saved.join("x")).unwrap();
    let every_step = |runtime: &mut crate::contract::job::Runtime| runtime.checkpoint_steps = 1;
    let outcome = shop.finetune("damaged").runtime(every_step).run::<Finetune>(&lora());
    assert!(outcome.warnings().contains("ignored a damaged checkpoint"), "{}", outcome.warnings());
    assert_eq!(tree(&outcome.done()), tree(&once));
}

#[test]
fn numbers_without_end_are_refused_before_memory_is_taken() {
    let shop = Workshop::pretrained();
    let mut config = lora();
    config["epochs"] = json!(1_000_000_000_000_000_000_u64);
    let error = shop.finetune("endless").run::<Finetune>(&config).error();
    assert!(error.to_string().starts_with("1000000000000000000 epochs of "), "{error}");
    assert!(error.help().unwrap().contains("max_steps"), "{error:?}");
    // What `max_steps` cuts off takes nothing.
    config["max_steps"] = json!(1);
    shop.finetune("short").run::<Finetune>(&config).done();
    let check = |rank: u64| {
        let config = json!({"lora": {"rank": rank}});
        Finetune::check(&serde_json::from_value(config).unwrap()).map_err(|issue| issue.message)
    };
    assert_eq!(check(8192), Ok(()));
    assert_eq!(check(1_000_000_000_000), Err("must be at most 8192, and is 1000000000000".into()));
    let config = json!({"vision_layers": 1_000_000_000_000_u64, "vision_learning_rate": 1e-6});
    let issue = Finetune::check(&serde_json::from_value(config).unwrap()).unwrap_err();
    assert_eq!(
        (issue.key.as_str(), issue.message.as_str()),
        ("vision_layers", "must be at most 1024, and is 1000000000000")
    );
}
