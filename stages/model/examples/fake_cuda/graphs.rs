//! The driver's functions (cuda.h) for graphs, which are captured from streams.

use std::ffi::{c_uint, c_ulonglong};

use crate::world::{Code, Failed, call, set, wrong};

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_uint = 2;

/// Refuses a call as `FAKE_CUDA_GRAPHS` says.
fn refuse(call: &str, code: Code) -> Result<(), Failed> {
    if std::env::var("FAKE_CUDA_GRAPHS").is_ok_and(|refused| refused == call) { Err(code.into()) } else { Ok(()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) -> u32 {
    call("cuStreamBeginCapture", |world| {
        world.own_stream(stream)?;
        if mode != RELAXED || world.streams.stream(stream)?.captured.is_some() {
            return wrong(Code::InvalidValue, "a mode that is not known here, or a stream that is captured already");
        }
        world.streams.stream(stream)?.captured = Some(Vec::new());
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> u32 {
    call("cuStreamEndCapture", |world| {
        world.own_stream(stream)?;
        let (context, handle) = (world.current()? + 1, world.handle());
        let Some(captured) = world.streams.stream(stream)?.captured.take() else {
            return wrong(Code::InvalidValue, "the stream is not captured");
        };
        refuse("capture", Code::CaptureInvalidated)?;
        world.graphs.insert(handle, (context, captured));
        unsafe { set(graph, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(launchable: *mut usize, graph: usize, flags: c_ulonglong) -> u32 {
    call("cuGraphInstantiate", |world| {
        world.current()?;
        let Some(captured) = world.graphs.get(&graph).filter(|_| flags == 0).cloned() else {
            return wrong(Code::InvalidValue, "there is no such graph, or flags that are not known here");
        };
        refuse("instantiate", Code::OutOfMemory)?;
        let handle = world.handle();
        world.launchable.insert(handle, captured);
        unsafe { set(launchable, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphLaunch(launchable: usize, stream: usize) -> u32 {
    call("cuGraphLaunch", |world| {
        world.own_stream(stream)?;
        let context = world.current()? + 1;
        refuse("launch", Code::OutOfMemory)?;
        let Some((of, captured)) = world.launchable.get(&launchable).cloned() else {
            return wrong(Code::InvalidHandle, "there is no such graph");
        };
        if of != context {
            return wrong(Code::InvalidValue, "the graph belongs to another context than this thread");
        }
        for work in captured {
            // What it used when it was captured may be gone.
            work.uses.iter().try_for_each(|address| world.check(*address, 1))?;
            world.start(stream, work)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphDestroy(graph: usize) -> u32 {
    call("cuGraphDestroy", |world| {
        let removed = world.graphs.remove(&graph);
        if removed.is_some() { Ok(()) } else { wrong(Code::InvalidValue, "there is no such graph") }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphExecDestroy(launchable: usize) -> u32 {
    call("cuGraphExecDestroy", |world| {
        world.current()?;
        let removed = world.launchable.remove(&launchable);
        if removed.is_some() { Ok(()) } else { wrong(Code::InvalidValue, "there is no such graph") }
    })
}
