//! With the feature `emulated`, compiles the GPU's kernels for the CPU.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulated")]
    emulated::compile();
}

#[cfg(feature = "emulated")]
mod emulated {
    use std::{fs, path::Path, process};

    const KERNELS: &str = "tensor/device/kernels";

    pub(super) fn compile() {
        println!("cargo::rerun-if-changed={KERNELS}");
        // Contracted sums would differ from machine to machine.
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(3).flag("-ffp-contract=off").warnings(false);
        build.flag_if_supported("-fcf-protection=none").flag_if_supported("-Wno-unknown-pragmas");
        if let Err(reason) = wrapper().and_then(|file| build.file(file).try_compile("imp_kernels").map_err(text)) {
            println!(
                "cargo::error=the feature `emulated` compiles C++ and needs g++ (Debian: apt-get install g++): {reason}"
            );
            process::exit(1);
        }
    }

    /// A compiler takes `.cu` for CUDA by its name.
    fn wrapper() -> Result<std::path::PathBuf, String> {
        let root = std::env::var("CARGO_MANIFEST_DIR").map_err(text)?;
        let file = Path::new(&std::env::var("OUT_DIR").map_err(text)?).join("kernels.cpp");
        let source = Path::new(&root).join(KERNELS).join("kernels.cu");
        fs::write(&file, format!("#include \"{}\"\n", source.display())).map_err(text)?;
        Ok(file)
    }

    fn text(error: impl ToString) -> String {
        error.to_string()
    }
}
