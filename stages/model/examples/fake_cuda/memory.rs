//! The driver's functions (cuda.h) for memory.

use std::{
    ffi::{c_int, c_uint, c_void},
    ptr,
};

use crate::{
    streams::Call,
    world::{Code, Failed, World, call, set, wrong},
};

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: c_uint = 4;
/// `CU_MEM_LOCATION_TYPE_DEVICE`, `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const DEVICE: c_uint = 1;
const READ_WRITE: c_uint = 3;

/// `CUmemAccessDesc`.
#[repr(C)]
struct Access {
    location: c_uint,
    device: c_int,
    flags: c_uint,
}

/// The GPU of a pool, whose handle is its number plus one.
fn of_pool(pool: usize) -> c_int {
    pool as c_int - 1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) -> u32 {
    call("cuDeviceGetDefaultMemPool", |world| {
        world.gpu(device)?;
        unsafe { set(pool, device as usize + 1) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolSetAttribute(pool: usize, attribute: c_uint, value: *mut c_void) -> u32 {
    call("cuMemPoolSetAttribute", |world| {
        world.gpu(of_pool(pool))?;
        let is_known = attribute == RELEASE_THRESHOLD && !value.is_null();
        if is_known { Ok(()) } else { wrong(Code::InvalidValue, "an attribute that is not known here") }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolSetAccess(pool: usize, map: *const Access, count: usize) -> u32 {
    call("cuMemPoolSetAccess", |world| {
        // SAFETY: the caller gives so many.
        for Access { location, device, flags } in unsafe { std::slice::from_raw_parts(map, count) } {
            world.gpu(*device)?;
            if (*location, *flags) != (DEVICE, READ_WRITE) || of_pool(pool) == *device {
                return wrong(Code::InvalidValue, "this access can't be set");
            }
            world.gpu(of_pool(pool))?.lets_in.insert(*device);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolTrimTo(pool: usize, _: usize) -> u32 {
    call("cuMemPoolTrimTo", |world| world.gpu(of_pool(pool)).map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    call("cuMemGetInfo", |world| {
        let gpu = world.current()?;
        let gpu = &world.gpus[gpu];
        unsafe { set(free, (gpu.memory - gpu.used) as usize) }?;
        unsafe { set(total, gpu.memory as usize) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: usize) -> u32 {
    call("cuMemAllocAsync", |world| {
        world.own_stream(stream)?;
        if bytes == 0 {
            return wrong(Code::InvalidValue, "no bytes");
        }
        let gpu = world.current()?;
        let taken = world.take(bytes, Some(gpu))?;
        unsafe { set(address, taken) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: usize) -> u32 {
    call("cuMemFreeAsync", |world| {
        world.own_stream(stream)?;
        world.check(address, 0)?;
        let Some(memory) = world.memory.get_mut(&address) else {
            return wrong(Code::InvalidValue, "no memory begins there");
        };
        memory.is_freed = true;
        // The next to take memory on this stream may have it at once.
        if let Some(gpu) = memory.gpu {
            world.gpus[gpu].used -= memory.bytes as u64;
        }
        world.streams.call(stream, Call::Free(address))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(address: *mut u64, bytes: usize, flags: c_uint) -> u32 {
    call("cuMemHostAlloc", |world| {
        world.current()?;
        if flags != 0 {
            return wrong(Code::InvalidValue, "flags that are not known here");
        }
        let taken = world.take(bytes, None)?;
        unsafe { set(address, taken) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(address: u64) -> u32 {
    call("cuMemFreeHost", |world| {
        world.current()?;
        if world.memory.get(&address).is_none_or(|memory| memory.gpu.is_some()) {
            return wrong(Code::InvalidValue, "no locked memory begins there");
        }
        world.remove(address);
        Ok(())
    })
}

/// Copies when the stream comes to it.
fn copy(world: &mut World, to: u64, from: u64, bytes: usize, stream: usize) -> Result<(), Failed> {
    world.queue(stream, &[to, from], move || {
        // SAFETY: both were checked when this was called, or are the caller's to keep. What is given back stays until that call runs.
        unsafe { ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) -> u32 {
    call("cuMemcpyHtoDAsync", |world| {
        world.check(to, bytes)?;
        copy(world, to, from as u64, bytes, stream)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) -> u32 {
    call("cuMemcpyDtoHAsync", |world| {
        world.check(from, bytes)?;
        copy(world, to as u64, from, bytes, stream)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> u32 {
    call("cuMemcpyDtoDAsync", |world| {
        world.check(to, bytes)?;
        world.check(from, bytes)?;
        if to.abs_diff(from) < bytes as u64 {
            return wrong(Code::InvalidValue, "the two places overlap");
        }
        let owner = |address| Some(world.memory.get(&world.start_of(address)?)?.gpu);
        let is_between = owner(to) != owner(from);
        match std::env::var("FAKE_CUDA_PEERS").as_deref() {
            Ok("lose") if is_between => Ok(()),
            Ok("fail") if is_between => world.queue(stream, &[], || Err(String::new())),
            _ => copy(world, to, from, bytes, stream),
        }
    })
}
