//! The driver's functions (cuda.h) for GPUs and contexts.

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    ptr,
};

use crate::world::{CURRENT, Code, call, set, wrong};

/// CUDA 13.0.
const VERSION: c_int = 13_000;
const NAME: &CStr = c"fake GPU";
/// `CUdevice_attribute`: the compute capability, and whether there are memory pools.
const MAJOR: c_uint = 75;
const MINOR: c_uint = 76;
const MEMORY_POOLS: c_uint = 115;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuInit(flags: c_uint) -> u32 {
    call("cuInit", |world| {
        world.is_started = true;
        if flags == 0 { Ok(()) } else { wrong(Code::InvalidValue, "flags") }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    call("cuDriverGetVersion", |_| unsafe { set(version, VERSION) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    let known = if error == Code::OutOfMemory as u32 { c"CUDA_ERROR_OUT_OF_MEMORY" } else { c"CUDA_ERROR" };
    call("cuGetErrorName", |_| unsafe { set(name, known.as_ptr()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_: u32, text: *mut *const c_char) -> u32 {
    call("cuGetErrorString", |_| unsafe { set(text, c"an error of the fake driver".as_ptr()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    call("cuDeviceGetCount", |world| unsafe { set(count, world.gpus.len() as c_int) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    call("cuDeviceGet", |world| {
        world.gpu(ordinal)?;
        unsafe { set(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> u32 {
    call("cuDeviceGetName", |world| {
        world.gpu(device)?;
        let bytes = NAME.to_bytes_with_nul();
        if (length as usize) < bytes.len() {
            return wrong(Code::InvalidValue, "too little room for the name");
        }
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr().cast(), name, bytes.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> u32 {
    call("cuDeviceTotalMem", |world| {
        let memory = world.gpu(device)?.memory;
        unsafe { set(bytes, memory as usize) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) -> u32 {
    call("cuDeviceGetAttribute", |world| {
        world.gpu(device)?;
        let known = match attribute {
            MAJOR => 9,
            MINOR => 0,
            MEMORY_POOLS => 1,
            _ => return wrong(Code::InvalidValue, format!("the attribute {attribute} is not known here")),
        };
        unsafe { set(value, known) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) -> u32 {
    call("cuDeviceCanAccessPeer", |world| {
        world.gpu(device)?;
        world.gpu(peer)?;
        let is_apart = std::env::var("FAKE_CUDA_APART").is_ok_and(|value| value == "1");
        unsafe { set(can, c_int::from(device != peer && !is_apart)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRetain", |world| {
        world.gpu(device)?.retained += 1;
        // Its handle is the number of its GPU, plus one.
        unsafe { set(context, device as usize + 1) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRelease", |world| {
        let gpu = world.gpu(device)?;
        if gpu.retained == 0 {
            return wrong(Code::InvalidContext, "it is not retained");
        }
        gpu.retained -= 1;
        if gpu.retained > 0 {
            return Ok(());
        }
        let context = device as usize + 1;
        let own = |memory: &&crate::world::Memory| memory.gpu == Some(device as usize) && !memory.is_freed;
        let left = [
            ("streams", world.streams.all.values().filter(|stream| stream.context == context).count()),
            ("events", world.streams.events.values().filter(|event| event.context == context).count()),
            ("modules", world.modules.values().filter(|module| module.context == context).count()),
            ("pieces of memory", world.memory.values().filter(own).count()),
        ];
        match left.into_iter().find(|(_, count)| *count > 0) {
            Some((what, count)) => wrong(Code::InvalidContext, format!("{count} {what} are left in the context")),
            None => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> u32 {
    call("cuCtxGetCurrent", |_| unsafe { set(context, CURRENT.get()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetCurrent(context: usize) -> u32 {
    call("cuCtxSetCurrent", |world| {
        let before = CURRENT.replace(context);
        let outcome = if context == 0 { Ok(()) } else { world.current().map(|_| ()) };
        if outcome.is_err() {
            CURRENT.set(before);
        }
        outcome
    })
}
