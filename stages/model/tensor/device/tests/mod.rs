//! The kernels on the emulated device against plain computations in f64, in three orders of threads that must give the
//! same bits.
//!
//! Inputs are rounded to bf16 where the kernel reads bf16, so both sides compute from the same numbers. What is left is
//! the error of sums in f32, and where bf16 is stored half a unit in its last place: 2^-8 of the value.
//!
//! With `IMP_FLOW_TEST_GPU=0` in the environment, the same tests run on GPU 0, twice instead of in several orders.
#![allow(clippy::unwrap_used)]

mod attention;
mod cached;
mod cublas;
mod emulated;
mod exchange;
mod forgetful;
mod gather;
mod layouts;
mod norm;
mod optimizer;
mod pointwise;
mod rounds;
mod uploads;

use std::sync::OnceLock;

use half::bf16;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    cuda::Cuda,
    driver::{Driver, Grid, Parameter, Stream, Type},
    emulated::Emulated,
};

/// Ascending, descending, and two random orders.
const ORDERS: [u32; 4] = [0, 1, 2, 7];
const TYPES: [Type; 2] = [Type::F32, Type::Bf16];

fn suffix(stored: Type) -> &'static str {
    if stored == Type::F32 { "f32" } else { "bf16" }
}

/// Random numbers in -range..range, rounded as they will be stored.
fn random(rng: &mut StdRng, count: usize, range: f32, stored: Type) -> Vec<f32> {
    (0..count).map(|_| rounded(rng.random_range(-range..range), stored)).collect()
}

fn rounded(value: f32, stored: Type) -> f32 {
    if stored == Type::F32 { value } else { bf16::from_f32(value).to_f32() }
}

fn generator(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Memory of a device, freed (and checked) at the end of its scope.
struct Memory<'a> {
    device: &'a dyn Driver,
    address: u64,
    bytes: usize,
}

impl<'a> Memory<'a> {
    fn new(device: &'a dyn Driver, bytes: usize) -> Self {
        Self { device, address: device.alloc(Stream::Compute, bytes).unwrap(), bytes }
    }

    fn with<T: bytemuck::NoUninit>(device: &'a dyn Driver, values: &[T]) -> Self {
        let memory = Self::new(device, size_of_val(values));
        device.upload(memory.address, bytemuck::cast_slice(values)).unwrap();
        memory
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        self.device.download(self.address, &mut bytes).unwrap();
        bytes
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.device.free(self.address, self.bytes);
    }
}

/// A parameter of a kernel.
#[derive(Clone)]
enum Arg {
    /// A buffer that is only read.
    In(Vec<u8>),
    /// A buffer that is written, with its content before.
    Out(Vec<u8>, Type),
    /// A value, in the bytes of the parameter.
    Value(Vec<u8>),
}

fn stored_bytes(values: &[f32], stored: Type) -> Vec<u8> {
    match stored {
        Type::F32 => bytemuck::cast_slice(values).to_vec(),
        Type::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

fn loaded(bytes: &[u8], stored: Type) -> Vec<f64> {
    match stored {
        Type::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect(),
        Type::Bf16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).into()).collect(),
    }
}

/// Activations that a kernel reads.
fn input(values: &[f32], stored: Type) -> Arg {
    Arg::In(stored_bytes(values, stored))
}

/// Other arrays that a kernel reads.
fn array<T: bytemuck::NoUninit>(values: &[T]) -> Arg {
    Arg::In(bytemuck::cast_slice(values).to_vec())
}

/// An output with undefined content.
fn output(count: usize, stored: Type) -> Arg {
    Arg::Out(vec![0xff; count * stored.size()], stored)
}

/// An output with values to which a kernel adds.
fn updated(values: &[f32], stored: Type) -> Arg {
    Arg::Out(stored_bytes(values, stored), stored)
}

fn value<T: bytemuck::NoUninit>(value: T) -> Arg {
    Arg::Value(bytemuck::bytes_of(&value).to_vec())
}

fn int(count: usize) -> Arg {
    value(i32::try_from(count).unwrap())
}

fn long(count: usize) -> Arg {
    value(i64::try_from(count).unwrap())
}

fn grid(blocks: [usize; 2], threads: u32, shared: usize) -> Grid {
    let [x, y] = blocks.map(|count| u32::try_from(count).unwrap());
    Grid { blocks: [x, y, 1], threads, shared: u32::try_from(shared).unwrap() }
}

/// A row per block. Row kernels take blocks of any number of warps up to eight.
fn by_row(rows: usize) -> Grid {
    grid([rows, 1], [256, 32, 256, 96][rows % 4], 0)
}

/// An element per thread.
fn by_element(count: usize) -> Grid {
    grid([count.div_ceil(256), 1], 256, 0)
}

fn launch(device: &dyn Driver, kernel: &str, grid: Grid, params: &[Vec<u8>]) {
    let parameter = |bytes: &Vec<u8>| {
        let mut parameter = Parameter::default();
        bytemuck::bytes_of_mut(&mut parameter)[..bytes.len()].copy_from_slice(bytes);
        parameter
    };
    let parameters: Vec<Parameter> = params.iter().map(parameter).collect();
    // SAFETY: the tests give what the kernels take.
    #[allow(unsafe_code)]
    unsafe { device.launch(Stream::Compute, kernel, grid, &parameters) }
        .unwrap_or_else(|error| panic!("{kernel}: {error}"));
}

/// Runs a kernel in all orders and returns its outputs, which must have the same bits.
fn run(kernel: &str, grid: Grid, args: &[Arg]) -> Vec<Vec<f64>> {
    let outputs = in_all_orders(kernel, |device| {
        let mut buffers = Vec::new();
        let mut params = Vec::new();
        for arg in args {
            match arg {
                Arg::In(bytes) | Arg::Out(bytes, _) => {
                    let memory = Memory::with(device, bytes);
                    params.push(memory.address.to_ne_bytes().to_vec());
                    buffers.push((memory, matches!(arg, Arg::Out(..)), bytes));
                }
                Arg::Value(bytes) => params.push(bytes.clone()),
            }
        }
        launch(device, kernel, grid, &params);
        for (memory, written, before) in &buffers {
            assert!(*written || memory.bytes() == **before, "{kernel} changed an input");
        }
        buffers.iter().filter(|(_, written, _)| *written).map(|(memory, ..)| memory.bytes()).collect()
    });
    let types = args.iter().filter_map(|arg| if let Arg::Out(_, stored) = arg { Some(*stored) } else { None });
    outputs.iter().zip(types).map(|(bytes, stored)| loaded(bytes, stored)).collect()
}

/// The bytes that `compute` returns, the same in all orders.
fn in_all_orders(name: &str, compute: impl Fn(&dyn Driver) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if let Some(gpu) = gpu() {
        let results = compute(gpu);
        assert!(results == compute(gpu), "{name}: a second run on the GPU has other bits");
        return results;
    }
    let [first, others @ ..] = ORDERS.map(|order| {
        let device = Emulated::new(order);
        let results = compute(&device);
        assert_eq!(device.live(), 0, "{name}: a buffer was not freed");
        results
    });
    for (order, other) in ORDERS[1..].iter().zip(others) {
        assert!(first == other, "{name}: order {order} changes the result");
    }
    first
}

/// The GPU that the environment names, unless the emulated device takes its place.
fn gpu() -> Option<&'static Cuda> {
    static GPU: OnceLock<Option<Cuda>> = OnceLock::new();
    let open = || {
        let index = std::env::var("IMP_FLOW_TEST_GPU").ok().filter(|_| super::emulated_gpus().is_none())?;
        Some(Cuda::open(index.parse().unwrap()).unwrap())
    };
    GPU.get_or_init(open).as_ref()
}

/// Compares values. `slack` bounds the error of sums in f32, relative to 1 and to the value.
fn check(name: &str, got: &[f64], want: &[f64], stored: Type, slack: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        // Half a unit in the last place of bf16, and a little for a value next to a tie.
        let rounding = if stored == Type::Bf16 { want.abs() / 256.0 } else { 0.0 };
        let bound = rounding + slack * (1.0 + want.abs());
        // Not finite is never near.
        assert!((got - want).abs() <= bound, "{name}: value {index} is {got} and not {want}");
    }
}

/// The expected output of a gradient kernel: with `add`, what was there before and the gradient.
fn added(before: &[f32], gradient: Vec<f64>, add: bool) -> Vec<f64> {
    if add { before.iter().zip(gradient).map(|(before, value)| f64::from(*before) + value).collect() } else { gradient }
}

/// The output buffer of a gradient kernel.
fn gradient_buffer(before: &[f32], stored: Type, add: bool) -> Arg {
    if add { updated(before, stored) } else { output(before.len(), stored) }
}
