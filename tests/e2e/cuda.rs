//! What the program calls in CUDA, with a library in its place that checks each call and runs the emulated kernels
//! (`stages/model/examples/fake_cuda`).

use std::{
    fs::File,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    gpu, gpus,
    support::{Output, Space, files},
    talking::TRAINED,
};

/// Without the library's own words nothing was called wrongly.
const WRONG: &str = "fake CUDA";

/// `cargo test --workspace` builds it; with `--test e2e` alone it may be missing, or older than its sources.
fn library() -> PathBuf {
    let changed = |file: &Path| file.metadata().and_then(|found| found.modified()).ok();
    let library = Path::new(env!("CARGO_BIN_EXE_imp-flow")).with_file_name("examples/libfake_cuda.so");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/model");
    let sources = ["examples/fake_cuda", "tensor/device/kernels"].map(|folder| files(&model.join(folder)));
    let is_new = sources.iter().flatten().all(|source| changed(source) <= changed(&library));
    assert!(is_new, "run `cargo test --workspace --no-run` first");
    library
}

/// Puts the library in the place of NVIDIA's.
fn with_cuda<'a>(space: &Space, command: &'a mut Command, memory: &str) -> &'a mut Command {
    let folder = space.path("cuda");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        // The names for which is looked first.
        for name in ["libcuda.so", "libcublasLt.so"] {
            symlink(library(), folder.join(name)).unwrap();
        }
    }
    command
        .env("LD_LIBRARY_PATH", folder)
        .env("FAKE_CUDA_MEMORY", memory)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("IMP_FLOW_GPU_DIRECT")
        .env_remove("IMP_FLOW_GPU_GRAPHS")
}

fn run(space: &Space, args: &[&str], memory: &str) -> Output {
    let output = space.output(with_cuda(space, &mut space.command(args), memory));
    check_logs(space, &output);
    output
}

/// Fails if the library has found something wrong, also in the log of a stage.
fn check_logs(space: &Space, output: &Output) {
    assert!(!output.stderr.contains(WRONG), "{}", output.stderr);
    for file in files(&space.path("cache")) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(WRONG.len()).position(|bytes| bytes == WRONG.as_bytes());
        let text = found.map(|at| String::from_utf8_lossy(&bytes[at..]).lines().next().unwrap_or_default().to_owned());
        assert_eq!(text, None, "{}", file.display());
    }
}

fn succeed(space: &Space, args: &[&str], memory: &str) -> Output {
    let output = run(space, args, memory);
    assert_eq!(output.code, Some(0), "{args:?}\n{}\n{}", output.stdout, output.stderr);
    output
}

#[test]
fn a_pipeline_on_cuda_learns_and_answers_as_on_the_cpu() {
    let (cuda, cpu) = (gpu::space(), gpu::space());
    let one = "1000000000";
    let found = succeed(&cuda, &["doctor"], one).stdout;
    assert!(found.contains("fake GPU, 1.0 GB, 1.0 GB free, compute capability 9.0"), "{found}");
    succeed(&cuda, &["run", "small.toml", "--device", "cuda", "--until", "finetune,pope"], one);
    cpu.succeed(&["run", "small.toml", "--device", "cpu", "--until", "finetune,pope"]);
    for stage in ["pretrain", "finetune", "lora"] {
        let (there, here) = (gpu::loss(&cuda, stage), gpu::loss(&cpu, stage));
        assert!((there / here - 1.0).abs() < 1e-3, "{stage}: {there} with CUDA, {here} on the CPU");
    }
    let shown = cuda.succeed(&["show", "pretrain"]).stdout;
    // Where there is a real driver, its version is between them.
    assert!(shown.contains("GPU: fake GPU, driver ") && shown.contains("CUDA 13.0, cuBLASLt 13.1.0"), "{shown}");
}

/// The pipeline on so many of three GPUs, with a variable of the library.
fn on_gpus(gpus: usize, (name, value): (&str, &str)) -> (Space, Output) {
    let space = gpus::space("f32", 8);
    let arguments = gpus::arguments(gpus, "finetune");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = space.command(&arguments);
    // The oldest that is used, which needs some products otherwise.
    command.env(name, value).env("FAKE_CUDA_CUBLAS", "120405");
    let output = space.output(with_cuda(&space, &mut command, "1000000000,1000000000,1000000000"));
    check_logs(&space, &output);
    (space, output)
}

#[test]
fn gpus_on_cuda_give_the_bits_of_one_whichever_way_they_exchange() {
    let ran = |gpus: usize, variable: (&str, &str), detour: Option<&str>| {
        let (space, output) = on_gpus(gpus, variable);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.code, Some(0), "{said}");
        assert_eq!(said.contains("goes through the host's memory"), detour.is_some(), "{said}");
        assert!(said.contains(detour.unwrap_or_default()), "{said}");
        space.digests("small")
    };
    let usual = ("FAKE_CUDA_APART", "0");
    let one = ran(1, usual, None);
    assert_eq!(ran(3, usual, None), one, "directly");
    let apart = "GPU 1 (worker 2 of 3) does not read the memory of GPU 0 (worker 1 of 3): there is no direct way";
    assert_eq!(ran(3, ("FAKE_CUDA_APART", "1"), Some(apart)), one, "no way");
    let lost =
        "GPU 1 (worker 2 of 3) does not read the memory of GPU 0 (worker 1 of 3): other bytes arrived than were sent";
    assert_eq!(ran(3, ("FAKE_CUDA_PEERS", "lose"), Some(lost)), one, "bytes are lost");
}

#[test]
fn a_gpu_that_fails_while_it_reads_another_says_how_not_to() {
    let (_, output) = on_gpus(2, ("FAKE_CUDA_PEERS", "fail"));
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let words = "GPU 1 (worker 2 of 2) or GPU 0 (worker 1 of 2) failed while the first read the memory of the second";
    assert!(output.stderr.contains(words), "{}", output.stderr);
    assert!(output.stderr.contains("with IMP_FLOW_GPU_DIRECT=0 in the environment"), "{}", output.stderr);
}

#[test]
fn a_full_gpu_is_what_cuda_says_it_is() {
    let args = ["run", "small.toml", "--device", "cuda", "--until", "pretrain"];
    // cuBLASLt's workspace takes 33.6 MB. What the driver or cuBLASLt need for themselves they don't say.
    for (full, memory, words) in
        [("", "34000000", " were needed, "), ("launch", "1000000000", ""), ("product", "1000000000", "")]
    {
        let space = gpu::space();
        let mut command = space.command(&args);
        let output = space.output(with_cuda(&space, command.env("FAKE_CUDA_FULL", full), memory));
        check_logs(&space, &output);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        let found = output.stderr.split_once("error: stage `pretrain`: the GPU's memory is full: ");
        let line = found.and_then(|(_, rest)| rest.lines().next()).unwrap_or_else(|| panic!("{}", output.stderr));
        let total = if full.is_empty() { "of 34.0 MB are free" } else { "of 1.0 GB are free" };
        assert!(line.ends_with(total) && line.contains(words), "{line}");
        assert_eq!(line.contains("needed"), full.is_empty(), "{line}");
        assert!(output.stderr.contains("micro_batch_size"), "{}", output.stderr);
    }
}

/// The calls of a token are made as one, or one by one where the GPU can't or may not, and the answer is the same.
#[test]
fn an_answer_on_cuda_is_the_same_with_and_without_graphs() {
    let libraries = Space::new();
    let ask = |name: &str, value: &str| {
        let args = ["ask", "merge", "What is it?", "--device", "cuda", "--temperature", "1.5", "--max-tokens", "40"];
        let mut command = TRAINED.command(&args);
        // The oldest that is used, which needs some products otherwise.
        let command = with_cuda(&libraries, &mut command, "1000000000").env("FAKE_CUDA_CUBLAS", "120405");
        let output = TRAINED.output(command.env(name, value));
        assert!(!output.stderr.contains(WRONG), "{}", output.stderr);
        output
    };
    let graphs = "IMP_FLOW_GPU_GRAPHS";
    let as_one = ask(graphs, "1");
    assert_eq!(as_one.code, Some(0), "{}", as_one.stderr);
    assert!(as_one.stdout.split_whitespace().count() > 8, "too short to tell: {}", as_one.stdout);
    let warning = "the GPU does not make all calls of a token as one, so answers take longer: ";
    assert!(!as_one.stderr.contains(warning), "{}", as_one.stderr);
    let refused = |call, why| ("FAKE_CUDA_GRAPHS", call, Some(why));
    for (name, value, why) in [
        (graphs, "0", None),
        refused("capture", "the GPU failed in capture: "),
        refused("instantiate", "the GPU's memory is full: "),
        refused("launch", "the GPU's memory is full: "),
    ] {
        let one_by_one = ask(name, value);
        assert_eq!(one_by_one.stdout, as_one.stdout, "{name}={value}");
        let told = one_by_one.stderr.split_once(&format!("warning: {warning}")).map(|(_, rest)| rest);
        assert_eq!(told.is_some(), why.is_some(), "{name}={value}: {}", one_by_one.stderr);
        assert!(told.unwrap_or_default().starts_with(why.unwrap_or_default()), "{name}={value}: {told:?}");
    }
    // A conversation says it once.
    let args = ["chat", "merge", "--device", "cuda", "--temperature", "1.5", "--max-tokens", "20"];
    libraries.write("questions", "What is it?\nWhat else?\n");
    let mut command = TRAINED.command(&args);
    command.env("FAKE_CUDA_GRAPHS", "capture").stdin(File::open(libraries.path("questions")).unwrap());
    let chat = TRAINED.output(with_cuda(&libraries, &mut command, "1000000000"));
    assert_eq!(chat.code, Some(0), "{}", chat.stderr);
    assert_eq!(chat.stderr.matches(&format!("warning: {warning}")).count(), 1, "{}", chat.stderr);
    let unknown = ask(graphs, "off");
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("IMP_FLOW_GPU_GRAPHS is `off`, which means nothing"), "{}", unknown.stderr);
}
