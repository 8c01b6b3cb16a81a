//! The kernels on a GPU.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_void},
    ptr::{null_mut, without_provenance_mut},
    sync::Mutex,
};

use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUfunction_attribute as FunctionAttribute, CUjit_option as JitOption},
};

use super::lock;

/// The kernels, made by `.ci/ptx` from the sources next to it.
pub(in crate::tensor::device) const KERNELS: &str = include_str!("../kernels/kernels.ptx");
/// More shared memory per block has to be asked for.
const SHARED_BY_DEFAULT: u32 = 48 << 10;
/// Bytes of what the driver's compiler says of an error, with a zero at the end.
const LOG: usize = 4096;

/// All kernels.
pub(super) struct Module {
    module: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, Function>>,
}

// SAFETY: the driver's handles can be used by any thread that has bound the context.
unsafe impl Send for Module {}
// SAFETY: the driver's functions can be called by several threads at once; what can't is behind a mutex.
unsafe impl Sync for Module {}

/// A kernel, and the bytes of shared memory that it was allowed to have.
#[derive(Clone, Copy)]
struct Function {
    function: sys::CUfunction,
    shared: u32,
}

/// The names of the kernels.
fn names() -> impl Iterator<Item = &'static str> {
    KERNELS.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('))
}

impl Module {
    /// Has the driver compile and load all kernels of this thread's context. A kernel that was loaded when it is first launched would
    /// need memory that the model may have taken by then.
    ///
    /// # Errors
    /// In words, with those of the compiler.
    pub(super) fn load() -> Result<Self, String> {
        // The driver wants a zero at the end. PTX has none inside.
        let source = CString::new(KERNELS).unwrap_or_default();
        let mut log = [0_u8; LOG];
        let mut options = [JitOption::CU_JIT_ERROR_LOG_BUFFER, JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), without_provenance_mut(LOG - 1)];
        let mut module = null_mut();
        let (image, count) = (source.as_ptr().cast(), options.len() as u32);
        // SAFETY: the source ends with a zero, and the log has as many bytes as is said; all live until this returns.
        unsafe { sys::cuModuleLoadDataEx(&raw mut module, image, count, options.as_mut_ptr(), values.as_mut_ptr()) }
            .result()
            .map_err(|error| {
                let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
                format!("its driver does not compile the kernels: {error}. {}", said.trim())
            })?;
        let loaded = Self { module, functions: Mutex::default() };
        for name in names() {
            match loaded.get(name) {
                Ok(function) => lock(&loaded.functions).insert(name, Function { function, shared: SHARED_BY_DEFAULT }),
                Err(error) => {
                    loaded.unload();
                    return Err(format!("its driver does not load the kernel {name}: {error}"));
                }
            };
        }
        Ok(loaded)
    }

    fn get(&self, name: &str) -> Result<sys::CUfunction, DriverError> {
        let name = CString::new(name).unwrap_or_default();
        let pointer: *const c_char = name.as_ptr();
        let mut function = null_mut();
        // SAFETY: the module of `load`; the name ends with a zero.
        unsafe { sys::cuModuleGetFunction(&raw mut function, self.module, pointer) }.result()?;
        Ok(function)
    }

    /// The kernel, allowed to have `shared` bytes of shared memory.
    pub(super) fn function(&self, kernel: &str, shared: u32) -> Result<sys::CUfunction, DriverError> {
        let mut functions = lock(&self.functions);
        let Some(of) = functions.get_mut(kernel) else {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND));
        };
        if shared > of.shared {
            let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of the module.
            unsafe { result::function::set_function_attribute(of.function, most, shared as i32) }?;
            of.shared = shared;
        }
        Ok(of.function)
    }

    /// Unloads the kernels, in their context.
    pub(super) fn unload(self) {
        // SAFETY: the module of `load`, which nothing uses after this.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernels_are_found_by_name() {
        let names: Vec<&str> = super::names().collect();
        assert!(names.len() > 50 && names.contains(&"adamw") && names.contains(&"accumulate_f32"), "{names:?}");
    }
}
