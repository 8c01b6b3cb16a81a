//! Training and answering on a GPU, which is the emulated one: the same kernels and launches as on a card, run by the CPU.

use serde_json::Value;

use crate::{
    interrupt::{signal, wait_for, with_checkpoint},
    support::{Output, SMALL, Space},
};

/// Makes the emulated device the machine's GPU. The value is the order of its threads.
const EMULATED: &str = "IMP_FLOW_EMULATED_GPU";

/// The small pipeline in bf16, without the stages that train twice.
pub(crate) fn space() -> Space {
    let space = Space::new();
    let bf16 = |kind: &str| (format!("kind = \"{kind}\"\n"), format!("kind = \"{kind}\"\nprecision = \"bf16\"\n"));
    let text = ["pretrain", "finetune", "eval"]
        .iter()
        .map(|kind| bf16(kind))
        .fold(SMALL.replace("epochs = 2", "epochs = 1"), |text, (from, to)| text.replace(&from, &to));
    space.write("small.toml", text);
    space
}

fn on_gpu(space: &Space, args: &[&str]) -> Output {
    let output = space.output(space.command(args).env(EMULATED, "0").env_remove("CUDA_VISIBLE_DEVICES"));
    assert_eq!(output.code, Some(0), "{args:?}\n{}\n{}", output.stdout, output.stderr);
    output
}

pub(crate) fn loss(space: &Space, stage: &str) -> f64 {
    let record: Value = serde_json::from_str(&space.read("artifacts/small/run.json")).unwrap();
    let stages = record["stages"].as_array().unwrap();
    let found = stages.iter().find(|found| found["name"] == stage).unwrap();
    found["results"]["loss"].as_f64().unwrap_or_else(|| panic!("{found}"))
}

/// bf16 rounds activations on a GPU, and only operands on the CPU: losses of a few steps are equal to a part in a thousand.
#[test]
fn a_gpu_learns_what_the_cpu_learns() {
    let (gpu, cpu) = (space(), space());
    on_gpu(&gpu, &["run", "small.toml", "--device", "cuda", "--until", "finetune,pope"]);
    cpu.succeed(&["run", "small.toml", "--device", "cpu", "--until", "finetune,pope"]);
    for stage in ["pretrain", "finetune", "lora"] {
        let (there, here) = (loss(&gpu, stage), loss(&cpu, stage));
        assert!((there / here - 1.0).abs() < 1e-3, "{stage}: {there} on the GPU, {here} on the CPU");
    }
    assert_ne!(gpu.digests("small"), cpu.digests("small"), "the GPU computed, so bits differ");
    let shown = on_gpu(&gpu, &["show", "pretrain"]).stdout;
    assert!(shown.contains("GPU: emulated GPU, driver emulated"), "{shown}");
    // The device is no part of the key.
    let again = gpu.succeed(&["run", "small.toml", "--device", "cpu", "--until", "finetune,pope"]);
    assert!(again.stdout.contains("up to date"), "{}", again.stdout);
}

#[test]
fn a_stage_that_was_stopped_on_a_gpu_resumes_to_the_same_bits() {
    let (stopped, whole) = (space(), space());
    let args = ["run", "small.toml", "--device", "cuda", "--until", "finetune"];
    let mut child = stopped.command(&args).env(EMULATED, "0").env_remove("CUDA_VISIBLE_DEVICES").spawn().unwrap();
    wait_for("a checkpoint of the second stage", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended first");
        with_checkpoint(&stopped, "finetune")
    });
    signal("INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let output = on_gpu(&stopped, &args);
    assert!(output.stderr.contains("resumed"), "{}", output.stderr);
    on_gpu(&whole, &args);
    assert_eq!(stopped.digests("small"), whole.digests("small"));
}

/// The vision encoder fits, the step does not: the stage says what it needed, and what does not depend on it goes on.
#[test]
fn a_stage_that_the_memory_is_too_small_for_says_what_to_lower() {
    let space = space();
    let args = ["run", "small.toml", "--device", "cuda", "--until", "pretrain"];
    let output = space.output(space.command(&args).env(EMULATED, "0:300000").env_remove("CUDA_VISIBLE_DEVICES"));
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("error: stage `pretrain`: the GPU's memory is full: "), "{}", output.stderr);
    assert!(
        output.stderr.contains("of 300 kB are free") && output.stderr.contains("micro_batch_size"),
        "{}",
        output.stderr
    );
    assert!(!output.stderr.contains("panicked") && !output.stderr.contains("bug"), "{}", output.stderr);
    // With enough of it the same command goes on.
    on_gpu(&space, &args);
}
