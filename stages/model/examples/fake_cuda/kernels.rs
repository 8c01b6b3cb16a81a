//! The driver's functions (cuda.h) for modules and kernels.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr,
};

use crate::{
    ptx,
    world::{Code, Function, Module, call, set, wrong},
};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`, and what a block may have without it and at most (compute capability 9.0).
const MAX_SHARED: c_uint = 8;
const SHARED: u32 = 48 << 10;
const MOST_SHARED: u32 = 227 << 10;

/// `CU_JIT_ERROR_LOG_BUFFER`, `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;

unsafe extern "C" {
    fn imp_emulated_launch(
        name: *const c_char,
        grid: *const u32,
        threads: u32,
        shared: u32,
        order: u32,
        params: *mut *mut c_void,
    ) -> *const c_char;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    image: *const c_void,
    count: c_uint,
    options: *const c_uint,
    values: *const *mut c_void,
) -> u32 {
    call("cuModuleLoadDataEx", |world| {
        let context = world.current()? + 1;
        // SAFETY: the caller gives so many.
        let (options, values) = unsafe {
            let count = count as usize;
            (std::slice::from_raw_parts(options, count), std::slice::from_raw_parts(values, count))
        };
        if options != [ERROR_LOG, ERROR_LOG_BYTES] || values[1].addr() == 0 {
            return wrong(Code::InvalidValue, "options that are not known here");
        }
        // SAFETY: PTX ends with a zero.
        let source = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
        let Some(kernels) = ptx::kernels(&source) else { return wrong(Code::InvalidImage, "this is no PTX") };
        let handle = world.handle();
        world.modules.insert(handle, Module { context, kernels });
        unsafe { set(module, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleUnload(module: usize) -> u32 {
    call("cuModuleUnload", |world| {
        world.current()?;
        let removed = world.modules.remove(&module);
        if removed.is_some() { Ok(()) } else { wrong(Code::InvalidHandle, "there is no such module") }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32 {
    call("cuModuleGetFunction", |world| {
        world.current()?;
        // SAFETY: names end with a zero.
        let kernel = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let Some(Module { context, kernels }) = world.modules.get(&module) else {
            return wrong(Code::InvalidHandle, "there is no such module");
        };
        let Some(ptx::Kernel { parameters, threads }) = kernels.get(&kernel).cloned() else {
            return wrong(Code::NotFound, format!("the PTX has no kernel {kernel}"));
        };
        if parameters.iter().any(|bytes| *bytes > 32) {
            return wrong(Code::InvalidImage, format!("a parameter of {kernel} is longer than any that is passed"));
        }
        let of = Function { context: *context, kernel, parameters, threads, shared: SHARED };
        let handle = world.handle();
        world.functions.insert(handle, of);
        unsafe { set(function, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_uint, value: c_int) -> u32 {
    call("cuFuncSetAttribute", |world| {
        world.current()?;
        let Some(function) = world.functions.get_mut(&function) else {
            return wrong(Code::InvalidHandle, "there is no such function");
        };
        match u32::try_from(value) {
            Ok(shared) if attribute == MAX_SHARED && shared <= MOST_SHARED => function.shared = shared,
            _ => return wrong(Code::InvalidValue, format!("{value} for the attribute {attribute}")),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    x: c_uint,
    y: c_uint,
    z: c_uint,
    threads: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    shared: c_uint,
    stream: usize,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    call("cuLaunchKernel", |world| {
        let context = world.current()? + 1;
        if std::env::var("FAKE_CUDA_FULL").is_ok_and(|what| what == "launch") {
            return Err(Code::OutOfMemory.into());
        }
        let Some(function) = world.functions.get(&function) else {
            return wrong(Code::InvalidHandle, "there is no such function");
        };
        let kernel = function.kernel.clone();
        let refuse = |what: &str| wrong(Code::InvalidValue, format!("{kernel}: {what}"));
        if function.context != context {
            return refuse("the kernel belongs to another context than this thread");
        }
        if [x, y, z].contains(&0) || x > i32::MAX as u32 || y > 0xffff || z > 0xffff {
            return refuse("the grid");
        }
        if threads == 0 || threads > function.threads || (threads_y, threads_z) != (1, 1) || !extra.is_null() {
            return refuse("the threads of a block");
        }
        if shared > function.shared {
            return refuse("more shared memory than it was allowed to have");
        }
        // Parameters are copied before the call returns, with the sizes that the PTX declares.
        let copied = function.parameters.iter().enumerate().map(|(number, bytes)| {
            let mut parameter = [0_u64; 8];
            // SAFETY: the caller gives a pointer to each parameter, of which none is larger than this.
            unsafe {
                let from: *const u8 = (*parameters.add(number)).cast();
                ptr::copy_nonoverlapping(from, parameter.as_mut_ptr().cast(), *bytes);
            }
            parameter
        });
        let copied: Vec<[u64; 8]> = copied.collect();
        // What looks like an address in memory that is there, is one.
        let pointers =
            function.parameters.iter().zip(&copied).filter(|(bytes, _)| **bytes == 8).map(|(_, value)| value[0]);
        let pointers: Vec<u64> = pointers.filter(|address| world.start_of(*address).is_some()).collect();
        pointers.iter().try_for_each(|address| world.check(*address, 1))?;
        world.queue(stream, &pointers, move || launch(&kernel, [x, y, z], threads, shared, copied.clone()))
    })
}

fn launch(
    kernel: &str,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    mut parameters: Vec<[u64; 8]>,
) -> Result<(), String> {
    let name = CString::new(kernel).map_err(|error| error.to_string())?;
    let mut pointers: Vec<*mut c_void> = parameters.iter_mut().map(|parameter| parameter.as_mut_ptr().cast()).collect();
    // SAFETY: the emulation of the kernel that the PTX was made of; the parameters live until it returns.
    let fault = unsafe { imp_emulated_launch(name.as_ptr(), grid.as_ptr(), threads, shared, 2, pointers.as_mut_ptr()) };
    if fault.is_null() {
        return Ok(());
    }
    // SAFETY: a constant of the emulation.
    Err(format!("{kernel}: {}", unsafe { CStr::from_ptr(fault) }.to_string_lossy()))
}
