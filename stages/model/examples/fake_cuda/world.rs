//! What there is: GPUs, contexts, memory, modules, and the handles that stand for them.

use std::{
    alloc::{Layout, alloc, dealloc},
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    ptx::Kernels,
    streams::{Call, Streams, Work},
};

/// Error codes of the driver (`CUresult` in cuda.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    InvalidDevice = 101,
    InvalidImage = 200,
    InvalidContext = 201,
    InvalidHandle = 400,
    NotFound = 500,
    LaunchFailed = 719,
    CaptureUnsupported = 900,
    CaptureInvalidated = 901,
}

/// A call that failed.
pub(crate) struct Failed {
    pub(crate) code: Code,
    /// What the program did wrong, unless it could not know.
    pub(crate) misuse: Option<String>,
}

impl Failed {
    pub(crate) fn misuse(code: Code, what: impl Into<String>) -> Self {
        Self { code, misuse: Some(what.into()) }
    }
}

impl From<Code> for Failed {
    fn from(code: Code) -> Self {
        Self { code, misuse: None }
    }
}

/// What the program did wrong.
pub(crate) fn wrong<T>(code: Code, what: impl Into<String>) -> Result<T, Failed> {
    Err(Failed::misuse(code, what))
}

/// Writes a result.
pub(crate) unsafe fn set<T>(to: *mut T, value: T) -> Result<(), Failed> {
    if to.is_null() {
        return wrong(Code::InvalidValue, "there is no place for the result");
    }
    // SAFETY: the caller of the driver gives a place for it.
    unsafe { to.write(value) };
    Ok(())
}

pub(crate) struct Gpu {
    pub(crate) memory: u64,
    pub(crate) used: u64,
    /// How often its primary context is retained; the context is there while that is not 0.
    pub(crate) retained: usize,
    /// The GPUs that its memory pool lets in.
    pub(crate) lets_in: BTreeSet<i32>,
}

/// Memory of a GPU, or locked memory of the host.
pub(crate) struct Memory {
    pub(crate) bytes: usize,
    /// `None` for the host's.
    pub(crate) gpu: Option<usize>,
    /// Given back by a call that may not have run yet.
    pub(crate) is_freed: bool,
}

pub(crate) struct Module {
    pub(crate) context: usize,
    pub(crate) kernels: Kernels,
}

pub(crate) struct Function {
    pub(crate) context: usize,
    pub(crate) kernel: String,
    pub(crate) parameters: Vec<usize>,
    /// The most threads of a block.
    pub(crate) threads: u32,
    /// Bytes of shared memory that a launch may ask for.
    pub(crate) shared: u32,
}

pub(crate) struct World {
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) streams: Streams,
    pub(crate) memory: BTreeMap<u64, Memory>,
    pub(crate) modules: BTreeMap<usize, Module>,
    pub(crate) functions: BTreeMap<usize, Function>,
    /// What was captured, and what of it can be launched, with the context of each.
    pub(crate) graphs: BTreeMap<usize, (usize, Vec<Work>)>,
    pub(crate) launchable: BTreeMap<usize, (usize, Vec<Work>)>,
    handles: usize,
    /// Whether `cuInit` was called.
    pub(crate) is_started: bool,
    /// Memory that was given back and is kept for a while, so that who still uses it is found out.
    old: VecDeque<(u64, usize)>,
}

/// Bytes of memory that was given back that are kept.
const OLD: usize = 64 << 20;

static WORLD: Mutex<Option<World>> = Mutex::new(None);

thread_local! {
    /// The context of this thread; 0 for none.
    pub(crate) static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Says what the program did wrong, also in the file that `FAKE_CUDA_LOG` names.
pub(crate) fn complain(what: &str) {
    eprintln!("fake CUDA: {what}");
    let file =
        std::env::var_os("FAKE_CUDA_LOG").and_then(|path| File::options().append(true).create(true).open(path).ok());
    let _ = file.map(|mut file| writeln!(file, "fake CUDA: {what}"));
}

/// Makes a call: its result as the driver's code.
pub(crate) fn call(name: &str, work: impl FnOnce(&mut World) -> Result<(), Failed>) -> u32 {
    attempt(name, work).err().unwrap_or(Code::Success) as u32
}

/// Makes a call. What the program did wrong is told.
pub(crate) fn attempt<T>(name: &str, work: impl FnOnce(&mut World) -> Result<T, Failed>) -> Result<T, Code> {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let world = world.get_or_insert_with(World::new);
    if world.streams.failed.contains(&CURRENT.get()) && CURRENT.get() != 0 {
        return Err(Code::LaunchFailed);
    }
    let result = work(world);
    world.give_back();
    result.map_err(|failed| {
        if let Some(what) = &failed.misuse {
            complain(&format!("{name}: {what}"));
        }
        failed.code
    })
}

impl World {
    fn new() -> Self {
        let memories = std::env::var("FAKE_CUDA_MEMORY").unwrap_or_default();
        let gpu = |memory: &str| {
            let memory = memory.trim().parse().unwrap_or(16 << 30);
            Gpu { memory, used: 0, retained: 0, lets_in: BTreeSet::new() }
        };
        Self {
            gpus: memories.split(',').map(gpu).collect(),
            streams: Streams::default(),
            memory: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            launchable: BTreeMap::new(),
            // No context has the handle 0, and none that of something else.
            handles: 1000,
            is_started: false,
            old: VecDeque::new(),
        }
    }

    pub(crate) fn handle(&mut self) -> usize {
        self.handles += 16;
        self.handles
    }

    pub(crate) fn gpu(&mut self, number: i32) -> Result<&mut Gpu, Failed> {
        if !self.is_started {
            return wrong(Code::NotInitialized, "cuInit was not called");
        }
        let gpu = usize::try_from(number).ok().and_then(|number| self.gpus.get_mut(number));
        gpu.ok_or_else(|| Failed::misuse(Code::InvalidDevice, "there is no such GPU"))
    }

    /// The GPU of this thread's context, which is its number plus one.
    pub(crate) fn current(&self) -> Result<usize, Failed> {
        let context = CURRENT.get();
        let alive = context.checked_sub(1).filter(|gpu| self.gpus.get(*gpu).is_some_and(|gpu| gpu.retained > 0));
        alive.ok_or_else(|| Failed::misuse(Code::InvalidContext, "this thread has no context, or one that is gone"))
    }

    /// Fails unless a stream belongs to this thread's context.
    pub(crate) fn own_stream(&mut self, stream: usize) -> Result<(), Failed> {
        let context = self.current()? + 1;
        if self.streams.stream(stream)?.context == context {
            return Ok(());
        }
        Err(Failed::misuse(Code::InvalidContext, "the stream belongs to another context than this thread"))
    }

    /// Takes memory of a GPU, or of the host for `None`. It begins as NaNs.
    pub(crate) fn take(&mut self, bytes: usize, gpu: Option<usize>) -> Result<u64, Failed> {
        if let Some(gpu) = gpu.map(|gpu| &mut self.gpus[gpu]) {
            if gpu.used + bytes as u64 > gpu.memory {
                return Err(Code::OutOfMemory.into());
            }
            gpu.used += bytes as u64;
        }
        let layout = layout(bytes)?;
        // SAFETY: the layout is not empty. What is written is what was taken.
        let address = unsafe {
            let address = alloc(layout);
            if address.is_null() {
                return Err(Code::OutOfMemory.into());
            }
            address.write_bytes(0xff, layout.size());
            address as u64
        };
        self.memory.insert(address, Memory { bytes, gpu, is_freed: false });
        Ok(address)
    }

    /// Gives back what calls that have run have freed.
    fn give_back(&mut self) {
        let freed: Vec<u64> =
            self.streams.freed.iter().copied().filter(|address| self.memory.contains_key(address)).collect();
        for address in freed {
            self.remove(address);
        }
        while self.old.iter().map(|(_, bytes)| bytes).sum::<usize>() > OLD {
            let Some((address, bytes)) = self.old.pop_front() else { return };
            self.streams.freed.remove(&address);
            if let Ok(layout) = layout(bytes) {
                // SAFETY: taken in `take` with this layout; nothing refers to it any more.
                unsafe { dealloc(address as *mut u8, layout) };
            }
        }
    }

    /// Takes memory out of use. Its bytes are NaNs from now on.
    pub(crate) fn remove(&mut self, address: u64) {
        let Some(memory) = self.memory.remove(&address) else { return };
        // SAFETY: taken in `take`, and not yet given back to the system.
        unsafe { (address as *mut u8).write_bytes(0xff, memory.bytes) };
        self.streams.freed.insert(address);
        self.old.push_back((address, memory.bytes));
    }

    /// Where the memory begins in which an address lies, if it lies in any.
    pub(crate) fn start_of(&self, address: u64) -> Option<u64> {
        let (start, memory) = self.memory.range(..=address).next_back()?;
        (address < start + memory.bytes as u64).then_some(*start)
    }

    /// Fails unless these bytes lie in memory that the current GPU may use.
    pub(crate) fn check(&self, address: u64, bytes: usize) -> Result<(), Failed> {
        let gpu = self.current()?;
        let wrong =
            |what: &str| Err(Failed::misuse(Code::InvalidValue, format!("{bytes} bytes at {address:#x}: {what}")));
        let Some((start, memory)) = self.memory.range(..=address).next_back() else { return wrong("no memory") };
        if address + bytes as u64 > start + memory.bytes as u64 {
            return wrong("not within memory that was taken");
        }
        if memory.is_freed {
            return wrong("they were given back");
        }
        match memory.gpu {
            None => wrong("the host's memory"),
            Some(owner) if owner == gpu || self.gpus[owner].lets_in.contains(&(gpu as i32)) => Ok(()),
            Some(_) => wrong("memory of a GPU that does not let this one in"),
        }
    }

    /// Queues work on a stream of this thread's context, which uses memory at these addresses; or keeps it, if the stream is captured.
    pub(crate) fn queue(
        &mut self,
        stream: usize,
        uses: &[u64],
        work: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<(), Failed> {
        self.own_stream(stream)?;
        let work = Work { uses: uses.to_vec(), run: Arc::new(work) };
        if let Some(captured) = &mut self.streams.stream(stream)?.captured {
            captured.push(work);
            return Ok(());
        }
        self.start(stream, work)
    }

    /// Queues work.
    pub(crate) fn start(&mut self, stream: usize, mut work: Work) -> Result<(), Failed> {
        work.uses = work.uses.iter().filter_map(|address| self.start_of(*address)).collect();
        self.streams.call(stream, Call::Work(work))
    }
}

fn layout(bytes: usize) -> Result<Layout, Failed> {
    Layout::from_size_align(bytes.max(1), 256).map_err(|_| Code::OutOfMemory.into())
}
