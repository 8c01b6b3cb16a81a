//! What CUDA offers on this machine, in words.
#![allow(unsafe_code)]

use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUdevice_attribute as Attribute},
};

use super::library;

/// Where the driver's kernel module says its version.
const VERSION: &str = "/proc/driver/nvidia/version";

/// What CUDA offers on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The version of NVIDIA's driver, and the CUDA version that it is for; or what is missing.
    pub driver: Result<String, String>,
    /// The version of cuBLASLt, or what is missing.
    pub cublaslt: Result<String, String>,
    /// The GPUs that the driver knows.
    pub cards: Vec<Card>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its number, by which it is chosen.
    pub index: usize,
    /// What its maker calls it.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// What its processors can do, as major and minor number.
    pub compute_capability: (u32, u32),
    /// Or why not.
    pub usable: Result<(), String>,
}

/// Looks for NVIDIA's driver, cuBLASLt and GPUs.
pub(in crate::tensor) fn probe() -> Probe {
    let driver = library::driver().map(|cuda| match std::fs::read_to_string(VERSION) {
        Ok(text) => module_version(&text).map_or_else(|| cuda.clone(), |version| format!("{version} for {cuda}")),
        // Not on Windows' Linux.
        Err(_) => cuda,
    });
    let cards = if driver.is_ok() { cards() } else { Vec::new() };
    Probe { driver, cublaslt: library::cublas(), cards }
}

fn cards() -> Vec<Card> {
    let count = result::device::get_count().unwrap_or(0);
    (0..usize::try_from(count).unwrap_or(0)).filter_map(|index| card(index).ok()).collect()
}

fn card(index: usize) -> Result<Card, DriverError> {
    let device = result::device::get(index as i32)?;
    let name = result::device::get_name(device)?;
    // SAFETY: a device of the driver.
    let memory = unsafe { result::device::total_mem(device) }? as u64;
    let compute_capability = compute_capability(device)?;
    Ok(Card { index, name, memory, compute_capability, usable: check(device, compute_capability) })
}

/// Bytes of a GPU's memory that no program uses; why it does not start, otherwise. Starts it for that, which takes a while.
pub(in crate::tensor) fn free_bytes(index: usize) -> Result<u64, String> {
    library::driver()?;
    let free = result::device::get(index as i32).and_then(free_memory);
    free.map_err(|error| format!("it does not start: {error}"))
}

/// The version of the driver's kernel module, the first word that looks like one.
fn module_version(text: &str) -> Option<&str> {
    let digits = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(digits)
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<i32, DriverError> {
    // SAFETY: a device of the driver.
    unsafe { result::device::get_attribute(device, attribute) }
}

fn compute_capability(device: sys::CUdevice) -> Result<(u32, u32), DriverError> {
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

/// Whether the kernels can run on a device.
fn check(device: sys::CUdevice, (major, minor): (u32, u32)) -> Result<(), String> {
    if major < 8 {
        return Err(format!("its compute capability is {major}.{minor}; 8.0 (Ampere) or later is needed"));
    }
    let pools = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED).map_err(|e| e.to_string())?;
    if pools == 0 {
        return Err("its driver has no memory pools, which some virtual GPUs lack".into());
    }
    library::knows((major, minor))
}

/// Whether a device can be used, for its opening.
pub(super) fn usable(device: sys::CUdevice) -> Result<(), String> {
    let compute_capability = compute_capability(device).map_err(|error| error.to_string())?;
    check(device, compute_capability)
}

fn free_memory(device: sys::CUdevice) -> Result<u64, DriverError> {
    let before = result::ctx::get_current()?;
    // SAFETY: the context is released below, after the thread has its former one again.
    unsafe {
        let context = result::primary_ctx::retain(device)?;
        let free = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
        // The former one may be gone; that is no fault of this GPU.
        let _ = result::ctx::set_current(before.unwrap_or(std::ptr::null_mut()));
        let _ = result::primary_ctx::release(device);
        Ok(free?.0 as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::module_version;

    #[test]
    fn the_version_is_that_of_the_module() {
        let line =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\nGCC version: 12.2.0";
        assert_eq!(module_version(line), Some("550.54.15"));
        assert_eq!(module_version("NVRM version: x86_64"), None);
    }
}
