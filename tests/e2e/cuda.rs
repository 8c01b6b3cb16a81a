//! What the program calls in CUDA, with a library in its place that checks each call and runs the emulated kernels
//! (`stages/model/examples/fake_cuda`).

use std::{os::unix::fs::symlink, path::Path, process::Command};

use crate::{
    gpu, gpus,
    support::{Output, Space, files},
};

/// Without the library's own words nothing was called wrongly.
const WRONG: &str = "fake CUDA";

/// `cargo test --workspace` builds it.
fn library() -> &'static Path {
    let folder = Path::new(env!("CARGO_BIN_EXE_imp-flow")).parent().unwrap();
    let library = Box::leak(folder.join("examples/libfake_cuda.so").into_boxed_path());
    assert!(library.exists(), "run `cargo build -p imp-model --features emulated --example fake_cuda` first");
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
    command.env("LD_LIBRARY_PATH", folder).env("FAKE_CUDA_MEMORY", memory).env_remove("CUDA_VISIBLE_DEVICES")
}

fn run(space: &Space, args: &[&str], memory: &str) -> Output {
    let output = space.output(with_cuda(space, &mut space.command(args), memory));
    assert!(!output.stderr.contains(WRONG), "{}", output.stderr);
    // Nor in the log of a stage.
    let logs = files(&space.path("cache")).into_iter().filter(|file| !file.ends_with("images.bin"));
    for file in logs {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(WRONG.len()).position(|bytes| bytes == WRONG.as_bytes());
        let text = found.map(|at| String::from_utf8_lossy(&bytes[at..]).lines().next().unwrap_or_default().to_owned());
        assert_eq!(text, None, "{}", file.display());
    }
    output
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
    assert!(shown.contains("GPU: fake GPU, driver CUDA 13.0, cuBLASLt 13.1.0"), "{shown}");
}

#[test]
fn gpus_on_cuda_give_the_bits_of_one_whichever_way_they_exchange() {
    let three = "1000000000,1000000000,1000000000";
    let ran = |gpus: usize, apart: &str| {
        let space = gpus::space("f32", 8);
        let arguments = gpus::arguments(gpus, "finetune");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = space.command(&arguments);
        command.env("FAKE_CUDA_APART", apart);
        let output = space.output(with_cuda(&space, &mut command, three));
        assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(
            said.contains("does not read the memory of GPU 0 (worker 1 of 3): there is no direct way"),
            gpus > 1 && apart == "1",
            "{said}"
        );
        assert!(!said.contains(WRONG), "{said}");
        run(&space, &["status"], three);
        space.digests("small")
    };
    let one = ran(1, "0");
    assert_eq!(ran(3, "0"), one, "directly");
    assert_eq!(ran(3, "1"), one, "through the host");
}

#[test]
fn a_full_gpu_is_what_cuda_says_it_is() {
    let space = gpu::space();
    let args = ["run", "small.toml", "--device", "cuda", "--until", "pretrain"];
    // cuBLASLt's workspace takes 33.6 MB.
    let output = run(&space, &args, "34000000");
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let words = "error: stage `pretrain`: the GPU's memory is full: ";
    assert!(output.stderr.contains(words) && output.stderr.contains("of 34.0 MB are free"), "{}", output.stderr);
}
