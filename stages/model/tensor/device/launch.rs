//! Launches kernels and products. Independent of which device runs them.
//!
//! This is the one place where parameters go to a device unchecked. It is open to [`super`] only, whose operations take
//! their grids and sizes from the shapes of matrices; each names the kernel whose signature in `kernels/` it follows. All of
//! them run in tests on the emulated device, whose buffers lie between guard pages.
#![allow(unsafe_code)]

use super::{
    Device, DeviceError,
    driver::{Call, Grid, Parameter, Product, Stream, Type},
    memory::Buffer,
};

/// Threads per block of the kernels that work by elements or rows.
const THREADS: u32 = 256;

/// Ends the computation if a device failed. Operations return matrices, not results, since nobody could go on: the error
/// travels as the panic's payload, which [`DeviceError`]'s users catch at the border of a stage.
pub(in crate::tensor) fn must<T>(result: Result<T, DeviceError>) -> T {
    result.unwrap_or_else(|error| std::panic::panic_any(error))
}

/// A kernel and its parameters, which are appended in the order of its signature.
pub(super) struct Kernel<'a> {
    device: &'a Device,
    stream: Stream,
    name: String,
    parameters: Vec<Parameter>,
}

impl<'a> Kernel<'a> {
    pub(super) fn new(device: &'a Device, name: impl Into<String>) -> Self {
        Self { device, stream: Stream::Compute, name: name.into(), parameters: Vec::new() }
    }

    /// The variant of a kernel for matrices that are stored as `kind`.
    pub(super) fn of(device: &'a Device, name: &str, kind: Type) -> Self {
        Self::new(device, format!("{name}_{}", kind.suffix()))
    }

    /// To be run on another stream.
    pub(super) fn on(mut self, stream: Stream) -> Self {
        self.stream = stream;
        self
    }

    pub(super) fn value<T: bytemuck::NoUninit>(mut self, value: T) -> Self {
        let mut parameter = Parameter::default();
        bytemuck::bytes_of_mut(&mut parameter)[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        self.parameters.push(parameter);
        self
    }

    pub(super) fn int(self, value: usize) -> Self {
        // Sizes of matrices are far below 2^31; counts of values are passed as i64.
        self.value(value as i32)
    }

    pub(super) fn count(self, value: usize) -> Self {
        self.value(value as i64)
    }

    /// Whether a gradient is added to what is there.
    pub(super) fn adding(self, add: bool) -> Self {
        self.value(i32::from(add))
    }

    pub(super) fn at(self, buffer: &Buffer) -> Self {
        self.value(buffer.address())
    }

    /// One thread for each of `count` values.
    pub(super) fn by_elements(self, count: usize) {
        self.run([count.div_ceil(THREADS as usize) as u32, 1, 1], THREADS, 0);
    }

    /// One block for each of `rows`.
    pub(super) fn by_rows(self, rows: usize) {
        self.run([rows as u32, 1, 1], THREADS, 0);
    }

    /// Runs the kernel. Nothing is launched for an empty grid.
    pub(super) fn run(self, blocks: [u32; 3], threads: u32, shared: usize) {
        if blocks.contains(&0) {
            return;
        }
        let grid = Grid { blocks, threads, shared: shared as u32 };
        let Self { device, stream, name, parameters } = self;
        if stream == Stream::Compute {
            must(device.make(Call::Launch { kernel: name, grid, parameters }));
            return;
        }
        // SAFETY: see the top of this file.
        let call = || unsafe { device.driver().launch(stream, &name, grid, &parameters) };
        must(device.timed(|| name.clone(), call));
    }
}

/// Sets the first `bytes` to zero.
pub(super) fn zero(buffer: &Buffer, bytes: usize) {
    // Buffers are a whole number of words long.
    let words = bytes.div_ceil(4);
    Kernel::new(buffer.device(), "fill_zero").at(buffer).count(words).by_elements(words);
}

/// A product `d (+)= alpha * op(a) op(b) + bias` of matrices of one type.
pub(super) fn product(a: &Buffer, b: &Buffer, d: &Buffer, of: &Product) {
    if of.m == 0 || of.n == 0 {
        return;
    }
    if of.k == 0 {
        // cuBLASLt takes no empty operands. The sum of nothing is zero: the gradient of a projector in a part without images.
        debug_assert!(of.bias.is_none(), "a layer without inputs has no bias");
        if of.beta == 0.0 {
            zero(d, of.m * of.n * of.out.size());
        }
        return;
    }
    let addresses = [a.address(), b.address(), d.address()];
    must(a.device().make(Call::Product { of: addresses, product: *of }));
}

impl Device {
    /// Makes a call, at once or with others of its round.
    fn make(&self, call: Call) -> Result<(), DeviceError> {
        let Some(call) = self.collect(call) else { return Ok(()) };
        // SAFETY: see the top of this file.
        self.timed(|| call.name(), || unsafe { call.make(self.driver()) })
    }
}
