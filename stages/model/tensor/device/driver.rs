//! What a device must do. There are two: a GPU through CUDA, and the emulated one of the tests. Independent of kernels and
//! shapes: what is computed is in `kernels/`, how it is launched in the operations.
#![allow(unsafe_code)]

use super::error::DeviceError;

/// How values are stored in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::tensor) enum Type {
    F32,
    Bf16,
}

impl Type {
    /// Bytes per value.
    pub(in crate::tensor) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The end of the names of kernels for it.
    pub(in crate::tensor) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// The product `d = alpha * op(a) op(b) + beta * d + bias`, row-major, with `op(a)` `[m, k]`, `op(b)` `[k, n]` and `d`
/// `[m, n]`. Operands are of the type `operands`, sums are in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::tensor) struct Product {
    pub(in crate::tensor) m: usize,
    pub(in crate::tensor) n: usize,
    pub(in crate::tensor) k: usize,
    /// Whether `a` is `[k, m]` in memory.
    pub(in crate::tensor) a_transposed: bool,
    /// Whether `b` is `[n, k]` in memory.
    pub(in crate::tensor) b_transposed: bool,
    pub(in crate::tensor) alpha: f32,
    /// With 0, `d` is overwritten whatever it holds.
    pub(in crate::tensor) beta: f32,
    pub(in crate::tensor) operands: Type,
    pub(in crate::tensor) out: Type,
    /// The address of `[n]` values of type `out` that are added to every row.
    pub(in crate::tensor) bias: Option<u64>,
}

/// The grid of a launch: blocks, threads per block, bytes of shared memory per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tensor) struct Grid {
    pub(in crate::tensor) blocks: [u32; 3],
    pub(in crate::tensor) threads: u32,
    pub(in crate::tensor) shared: u32,
}

/// A parameter of a kernel, which begins at the first byte. The largest is a struct of eight words of four bytes.
pub(in crate::tensor) type Parameter = [u64; 4];

/// A call on [`Stream::Compute`] that can be made later.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::tensor) enum Call {
    /// Of [`Driver::launch`].
    Launch { kernel: String, grid: Grid, parameters: Vec<Parameter> },
    /// Of [`Driver::product`]: the addresses of `a`, `b` and `d`, and what is computed.
    Product { of: [u64; 3], product: Product },
}

impl Call {
    /// The kernel, or the product with its shape.
    pub(in crate::tensor) fn name(&self) -> String {
        match self {
            Self::Launch { kernel, .. } => kernel.clone(),
            Self::Product { product: Product { m, n, k, .. }, .. } => format!("product [{m}, {k}] by [{k}, {n}]"),
        }
    }

    /// Makes it.
    ///
    /// # Safety
    /// As for the method of [`Driver`].
    pub(in crate::tensor) unsafe fn make(&self, driver: &dyn Driver) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe {
            match self {
                Self::Launch { kernel, grid, parameters } => driver.launch(Stream::Compute, kernel, *grid, parameters),
                Self::Product { of: [a, b, d], product } => driver.product(*a, *b, *d, product),
            }
        }
    }
}

/// One of the orders in which a device does things. What is called on one is done in the order of the calls, and in no order to
/// what is called on another, unless that waits for a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tensor) enum Stream {
    /// All but what is said to be on another.
    Compute,
    /// Copies from host memory, while something else is computed.
    Upload,
    /// What devices exchange with each other, or with the host, while something else is computed.
    Exchange,
}

/// All of them, by their numbers.
pub(in crate::tensor) const STREAMS: [Stream; 3] = [Stream::Compute, Stream::Upload, Stream::Exchange];

/// Marks that a device has, numbered from 0: those of `uploads.rs`, then those of `exchange.rs`.
pub(in crate::tensor) const MARKS: usize = 64;

/// A device. Addresses are its own. It may do things later than it is called, but on each of its streams in the order of the
/// calls. Calls that name no stream are on [`Stream::Compute`].
pub(in crate::tensor) trait Driver: Send + Sync {
    /// Takes memory, with undefined content, aligned to 256 bytes. It exists for what is called on `stream` from then on, and
    /// for another stream after it, or the host, waited for that. All that has ever been done with these bytes before is done by then.
    fn alloc(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError>;
    /// Gives it back once the calls on [`Stream::Compute`] before this one are done.
    fn free(&self, address: u64, bytes: usize);
    /// Copies from host memory, which may be changed when this returns.
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError>;
    /// Takes host memory from which the device can copy while the host goes on, until the device is closed. `None` if there is
    /// none to be had.
    fn lock(&self, bytes: usize) -> Option<u64>;
    /// Copies from host memory to `through`, locked memory, at once, and from there to the device on `stream`. What is in the
    /// locked memory must stay until that is done.
    ///
    /// # Safety
    /// The bytes at `through` must be within the memory of one call of [`Driver::lock`], and no earlier copy from them may still
    /// be under way: the host has waited for a mark after it.
    unsafe fn upload_through(&self, stream: Stream, to: u64, through: u64, from: &[u8]) -> Result<(), DeviceError>;
    /// Sets a mark after the calls on a stream so far. Who waits for an earlier one of this number, waits for that one.
    fn mark(&self, stream: Stream, mark: usize) -> Result<(), DeviceError>;
    /// Lets the later calls on a stream, or the host for `None`, wait for a mark as it is set now.
    fn wait(&self, waiting: Option<Stream>, mark: usize) -> Result<(), DeviceError>;
    /// Copies to host memory, after all calls before this one.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError>;
    /// Copies from the device to `through`, locked memory, on [`Stream::Exchange`].
    ///
    /// # Safety
    /// The bytes at `through` must be within the memory of one call of [`Driver::lock`]. They must not be read or written before
    /// the host has waited for a mark after this.
    unsafe fn download_through(&self, through: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;
    /// Copies between two places of the device that do not overlap.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;
    /// The number by which other devices know this one.
    fn number(&self) -> i32;
    /// Lets the kernels and copies of another device use this one's memory, from now on. False if it has no direct way to it.
    fn let_in(&self, number: i32) -> Result<bool, DeviceError>;
    /// Copies from the memory of another device, which has let this one in, on [`Stream::Exchange`].
    ///
    /// # Safety
    /// The host must have waited for what writes to `from`, which must be live until it has waited for a mark after this.
    unsafe fn fetch(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;
    /// Runs a kernel on a stream.
    ///
    /// # Safety
    /// `parameters` must be what the kernel takes, and the addresses in them must be live and large enough. What is said of
    /// [`Driver::fetch`] is true for addresses of another device.
    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: &str,
        grid: Grid,
        parameters: &[Parameter],
    ) -> Result<(), DeviceError>;
    /// Computes a product. One of empty operands (`k` is 0) is an error.
    ///
    /// # Safety
    /// `a`, `b` and `d` must be live and as large as `product` says.
    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError>;
    /// Prepares these calls to be made as one, as often as one likes, instead of those of the last time. Without calls, forgets
    /// those.
    ///
    /// # Safety
    /// As for the calls, each time when they are made.
    unsafe fn keep(&self, calls: &[Call]) -> Result<(), DeviceError>;
    /// Makes the calls that were kept.
    ///
    /// # Safety
    /// As for the calls.
    unsafe fn repeat(&self) -> Result<(), DeviceError>;
}
