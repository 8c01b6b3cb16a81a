//! The driver's functions (cuda.h) for streams and events.

use std::ffi::c_uint;

use crate::{
    streams::{Event, Stream},
    world::{Code, call, set, wrong},
};

/// `CU_STREAM_NON_BLOCKING`, `CU_EVENT_DISABLE_TIMING`.
const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> u32 {
    call("cuStreamCreate", |world| {
        let (context, handle) = (world.current()? + 1, world.handle());
        if flags != NON_BLOCKING {
            return wrong(Code::InvalidValue, "flags that are not known here");
        }
        world.streams.all.insert(handle, Stream::of(context));
        unsafe { set(stream, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamDestroy_v2(stream: usize) -> u32 {
    call("cuStreamDestroy", |world| {
        world.own_stream(stream)?;
        // What was called on it is still done.
        world.streams.finish(stream)?;
        world.streams.all.remove(&stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamSynchronize(stream: usize) -> u32 {
    call("cuStreamSynchronize", |world| {
        world.own_stream(stream)?;
        world.streams.finish(stream)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> u32 {
    call("cuStreamWaitEvent", |world| {
        world.own_stream(stream)?;
        if flags == 0 { world.streams.wait(stream, event) } else { wrong(Code::InvalidValue, "flags") }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut usize, flags: c_uint) -> u32 {
    call("cuEventCreate", |world| {
        let (context, handle) = (world.current()? + 1, world.handle());
        if flags != DISABLE_TIMING {
            return wrong(Code::InvalidValue, "flags that are not known here");
        }
        world.streams.events.insert(handle, Event::of(context));
        unsafe { set(event, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventDestroy_v2(event: usize) -> u32 {
    call("cuEventDestroy", |world| {
        world.current()?;
        world.streams.event(event)?;
        world.streams.events.remove(&event);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventRecord(event: usize, stream: usize) -> u32 {
    call("cuEventRecord", |world| {
        world.own_stream(stream)?;
        if world.streams.event(event)?.context != world.current()? + 1 {
            return wrong(Code::InvalidHandle, "the event belongs to another context than the stream");
        }
        world.streams.record(stream, event)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventSynchronize(event: usize) -> u32 {
    call("cuEventSynchronize", |world| {
        world.current()?;
        world.streams.reach(event)
    })
}
