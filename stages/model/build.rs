//! With the feature `emulated`, compiles the GPU's kernels for the CPU.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulated")]
    emulated::compile();
}

#[cfg(feature = "emulated")]
mod emulated {
    use std::{
        error::Error,
        fs,
        path::{Path, PathBuf},
        process,
    };

    const KERNELS: &str = "tensor/device/kernels";

    pub(super) fn compile() {
        println!("cargo::rerun-if-changed={KERNELS}");
        if let Err(reason) = try_compile() {
            let needed = "the feature `emulated` compiles C++ and needs g++ (Debian: apt-get install g++)";
            println!("cargo::error={needed}: {}", reason.to_string().replace('\n', " "));
            process::exit(1);
        }
    }

    fn try_compile() -> Result<(), Box<dyn Error>> {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(3).warnings(false);
        // Contracted sums would differ from machine to machine.
        build.flag("-ffp-contract=off");
        // The fibers return to addresses that were never called.
        build.flag_if_supported("-fcf-protection=none");
        build.file(wrapper()?).try_compile("imp_kernels")?;
        Ok(())
    }

    /// A compiler takes a file `.cu` for CUDA by its name.
    fn wrapper() -> Result<PathBuf, Box<dyn Error>> {
        let source = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join(KERNELS).join("kernels.cu");
        let file = Path::new(&std::env::var("OUT_DIR")?).join("kernels.cpp");
        fs::write(&file, format!("#include \"{}\"\n", source.display()))?;
        Ok(file)
    }
}
