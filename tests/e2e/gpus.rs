//! Several GPUs in one stage, which are emulated: the kernels and launches of a card, run by the CPU.

use crate::{
    interrupt::{signal, wait_for, with_checkpoint},
    support::{Output, SMALL, Space},
};

/// Makes emulated devices the machine's GPUs: the order of threads, and the memory of each.
const EMULATED: &str = "IMP_FLOW_EMULATED_GPU";
/// Three of them.
const THREE: &str = "0:1000000000,1000000000,1000000000";
/// The GPUs that each stage gets.
const STAGES: [&str; 4] = ["pretrain", "finetune", "lora", "pope"];

/// The small pipeline with parts of one record, as short as it can be: a step for each four `images`.
pub(crate) fn space(precision: &str, images: usize) -> Space {
    let space = Space::new();
    let images = format!("images = {images}");
    let mut text = SMALL.replace("epochs = 2", "epochs = 1").replace("images = 32", &images);
    for kind in ["pretrain", "finetune", "eval"] {
        let with = format!("kind = \"{kind}\"\nprecision = \"{precision}\"\n");
        text = text.replace(&format!("kind = \"{kind}\"\n"), &with);
    }
    text = text.replace("checkpoint_steps = 2", "checkpoint_steps = 1\nmicro_batch_size = 1");
    text += "[stages.pretrain.runtime]\nmicro_batch_size = 1\n[stages.lora.runtime]\nmicro_batch_size = 2\n\
             [stages.pope.runtime]\nmicro_batch_size = 3\n";
    space.write("small.toml", text);
    space
}

/// The arguments that give each stage so many GPUs.
pub(crate) fn arguments(gpus: usize, until: &str) -> Vec<String> {
    let mut arguments: Vec<String> = ["run", "small.toml", "--device", "cuda", "--until", until].map(Into::into).into();
    for stage in STAGES {
        arguments.extend(["--set".into(), format!("stages.{stage}.runtime.gpus={gpus}")]);
    }
    arguments
}

fn run(space: &Space, gpus: usize, until: &str, emulated: &str) -> Output {
    let arguments = arguments(gpus, until);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = space.command(&arguments);
    command.env(EMULATED, emulated).env_remove("CUDA_VISIBLE_DEVICES").env_remove("IMP_FLOW_GPU_DIRECT");
    space.output(&mut command)
}

fn succeed(space: &Space, gpus: usize, until: &str) {
    let output = run(space, gpus, until, THREE);
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    assert!(!output.stdout.contains("is enough"), "all GPUs are used: {}", output.stdout);
    assert!(!output.stdout.contains("through the host"), "they use each other's memory: {}", output.stdout);
}

/// Weights, and answers.
#[test]
fn any_number_of_gpus_gives_the_same_bits() {
    let digests = |gpus: usize, precision: &str, until: &str| {
        let space = space(precision, 8);
        succeed(&space, gpus, until);
        let shown = space.succeed(&["show", "pretrain"]).stdout;
        let name = if gpus == 1 { "GPU: emulated GPU".into() } else { format!("GPU: {gpus} x emulated GPU") };
        assert!(shown.contains(&name), "{shown}");
        space.digests("small")
    };
    let one = digests(1, "f32", "pope");
    for gpus in [2, 3] {
        assert_eq!(digests(gpus, "f32", "pope"), one, "{gpus} GPUs");
    }
    assert_eq!(digests(2, "bf16", "finetune"), digests(1, "bf16", "finetune"));
}

#[test]
fn a_stage_that_was_stopped_resumes_on_another_number_of_gpus() {
    let whole = space("f32", 12);
    succeed(&whole, 1, "finetune");
    for gpus in [1, 3] {
        let stopped = space("f32", 12);
        let arguments = arguments(2, "finetune");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let command = &mut stopped.command(&arguments);
        let mut child = command.env(EMULATED, THREE).env_remove("CUDA_VISIBLE_DEVICES").spawn().unwrap();
        wait_for("a checkpoint of the second stage", || {
            assert!(child.try_wait().unwrap().is_none(), "it ended first");
            with_checkpoint(&stopped, "finetune")
        });
        signal("INT", child.id());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let output = run(&stopped, gpus, "finetune", THREE);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!(output.stderr.contains("resumed"), "{}", output.stderr);
        assert_eq!(stopped.digests("small"), whole.digests("small"), "{gpus} GPUs");
    }
}

/// Where the user forbids that GPUs use each other's memory. It is said, and changes nothing else.
#[test]
fn gradients_that_go_through_the_host_are_the_same() {
    let direct = space("f32", 8);
    succeed(&direct, 3, "finetune");
    let detour = space("f32", 8);
    let arguments = arguments(3, "finetune");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = detour.command(&arguments);
    command.env(EMULATED, THREE).env("IMP_FLOW_GPU_DIRECT", "0").env_remove("CUDA_VISIBLE_DEVICES");
    let output = detour.output(&mut command);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains("goes through the host's memory, which takes longer: IMP_FLOW_GPU_DIRECT is 0"), "{said}");
    assert_eq!(detour.digests("small"), direct.digests("small"));
}

/// The second GPU is too small: the stage ends with its words, and goes on where it is large enough.
#[test]
fn a_worker_that_fails_ends_the_stage_and_names_its_gpu() {
    let space = space("f32", 12);
    let output = run(&space, 2, "pretrain", "0:1000000000,400000");
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let words = "error: stage `pretrain`: GPU 1 (worker 2 of 2): the GPU's memory is full: ";
    assert!(output.stderr.contains(words), "{}", output.stderr);
    assert!(output.stderr.contains("of 400 kB are free"), "{}", output.stderr);
    assert!(!output.stderr.contains("panicked") && !output.stderr.contains("bug"), "{}", output.stderr);
    // The model fits, a step does not: the first worker does not wait for ever for the second.
    succeed(&space, 2, "pretrain");
    let output = run(&space, 2, "finetune", "0:1000000000,6300000");
    let words = "error: stage `finetune`: GPU 1 (worker 2 of 2): the GPU's memory is full: ";
    assert!(output.stderr.contains(words), "{}", output.stderr);
    let output = run(&space, 4, "finetune", THREE);
    assert!(output.stderr.contains("needs 4 GPUs, but this machine has 3"), "{}", output.stderr);
}
