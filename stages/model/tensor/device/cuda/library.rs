//! Whether CUDA's libraries are there. They are loaded when first asked for, and cudarc panics where a library or a
//! function is missing: so everything that this module's siblings call is asked for here, before.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use cudarc::{cublaslt::sys as lt, driver::sys};

/// The first CUDA version that understands the kernels (they are compiled by NVRTC 12.2), as the driver gives it.
const OLDEST: i32 = 12020;
/// The first cuBLASLt without floating-point exceptions on Hopper (release notes of CUDA 12.4 Update 1).
const OLDEST_CUBLAS: usize = 120_405;

const INSTALL: &str = "Install it, for example from PyPI (`pip install nvidia-cublas`, or nvidia-cublas-cu12 with a driver for CUDA \
                       12), and set LD_LIBRARY_PATH to the folder with the file, which `pip show -f` lists";

/// What is called in the driver.
const DRIVER_FUNCTIONS: [&str; 45] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemPoolSetAccess",
    "cuMemPoolSetAttribute",
    "cuMemPoolTrimTo",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// What is called in cuBLASLt.
const CUBLAS_FUNCTIONS: [&str; 14] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoConfigGetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Starts NVIDIA's driver. Returns the CUDA version that it is for, or what is missing.
pub(super) fn driver() -> Result<String, String> {
    static STARTED: OnceLock<Result<String, String>> = OnceLock::new();
    STARTED.get_or_init(start_driver).clone()
}

fn start_driver() -> Result<String, String> {
    // SAFETY: loading it runs its initializers, as for every program that uses CUDA.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "NVIDIA's driver (libcuda.so.1) was not found. On Debian, the packages nvidia-driver and libcuda1 \
                    have it; in a container, the host gives it: start it with `--gpus all`"
                .into(),
        );
    }
    // SAFETY: it is present; nothing is called through the pointers that are looked up.
    let missing = DRIVER_FUNCTIONS.iter().find(|name| unsafe { sys::culib().get::<fn()>(name.as_bytes()) }.is_err());
    if let Some(name) = missing {
        return Err(format!("NVIDIA's driver is too old, it has no {name}: at least version 535 is needed"));
    }
    cudarc::driver::result::init().map_err(|error| format!("NVIDIA's driver does not start: {error}"))?;
    let mut version = 0;
    // SAFETY: the function is there, and writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|error| format!("NVIDIA's driver does not tell its version: {error}"))?;
    let words = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
    if version < OLDEST {
        return Err(format!(
            "NVIDIA's driver is too old, it is for {words}: at least version 535, for CUDA 12.2, is needed"
        ));
    }
    Ok(words)
}

/// Loads cuBLASLt. Returns its version, or what is missing.
pub(super) fn cublas() -> Result<String, String> {
    static LOADED: OnceLock<Result<String, String>> = OnceLock::new();
    LOADED.get_or_init(load_cublas).clone()
}

fn load_cublas() -> Result<String, String> {
    // SAFETY: as for the driver.
    if !unsafe { lt::is_culib_present() } {
        return Err(format!("cuBLAS (libcublasLt.so.13 or .so.12) was not found. {INSTALL}"));
    }
    // SAFETY: as for the driver.
    let missing = CUBLAS_FUNCTIONS.iter().find(|name| unsafe { lt::culib().get::<fn()>(name.as_bytes()) }.is_err());
    if let Some(name) = missing {
        return Err(format!(
            "cuBLAS is too old, it has no {name}: at least {} is needed. {INSTALL}",
            in_words(OLDEST_CUBLAS)
        ));
    }
    // SAFETY: the function is there.
    let version = unsafe { lt::cublasLtGetVersion() };
    let words = in_words(version);
    if version < OLDEST_CUBLAS {
        Err(format!(
            "cuBLAS is too old, it is version {words}: at least {} is needed. {INSTALL}",
            in_words(OLDEST_CUBLAS)
        ))
    } else {
        Ok(words)
    }
}

/// 12.2.5 is 120205, and before version 12 it was 11205.
fn in_words(version: usize) -> String {
    let [major, minor] = if version >= 100_000 { [10000, 100] } else { [1000, 100] };
    format!("{}.{}.{}", version / major, version % major / minor, version % minor)
}

/// Whether cuBLASLt knows cards of this compute capability: those from 10.0 on (Blackwell) since CUDA 12.8.
pub(super) fn knows((major, _): (u32, u32)) -> Result<(), String> {
    const OLDEST_FOR_BLACKWELL: usize = 120_800;
    // SAFETY: the function is there, as `cublas` has found.
    let is_old = cublas().is_ok() && unsafe { lt::cublasLtGetVersion() } < OLDEST_FOR_BLACKWELL;
    if major < 10 || !is_old {
        return Ok(());
    }
    Err(format!("for its kind, cuBLAS must be version {} or later. {INSTALL}", in_words(OLDEST_FOR_BLACKWELL)))
}

/// Whether a product of one row may be wrong with a bias: fixed in 12.8 Update 1, which has cuBLAS 12.8.4 (5104822 in the release
/// notes of CUDA).
pub(super) fn mistakes_bias_of_one_row() -> bool {
    // SAFETY: the function is there, as `cublas` has found.
    cublas().is_ok() && unsafe { lt::cublasLtGetVersion() } < 120_804
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_read() {
        assert_eq!([11205, 120_405, 130_800].map(super::in_words), ["11.2.5", "12.4.5", "13.8.0"]);
    }

    #[test]
    fn nothing_panics_where_cuda_is_missing() {
        match super::driver() {
            Ok(version) => assert!(version.starts_with("CUDA ")),
            Err(missing) => assert!(missing.starts_with("NVIDIA's driver "), "{missing}"),
        }
        match super::cublas() {
            Ok(version) => assert!(version.starts_with(|digit: char| digit.is_ascii_digit()), "{version}"),
            Err(missing) => assert!(missing.starts_with("cuBLAS "), "{missing}"),
        }
    }
}
