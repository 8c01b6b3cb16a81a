//! What a device must do. There are two: a GPU through CUDA, and the emulated one of the tests. Independent of kernels and
//! shapes: what is computed is in `kernels/`, how it is launched in the operations.
#![allow(unsafe_code)]

use std::ffi::c_void;

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

/// A device. Addresses are its own. It may do things later than it is called, but in the order of the calls.
pub(in crate::tensor) trait Driver: Send + Sync {
    /// Takes memory, with undefined content, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError>;
    /// Gives it back once the calls before this one are done.
    fn free(&self, address: u64, bytes: usize);
    /// Copies from host memory, which may be changed when this returns.
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError>;
    /// Copies to host memory, after all calls before this one.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError>;
    /// Copies between two places of the device that do not overlap.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// `params` must be what the kernel takes, and the addresses in them must be live and large enough.
    unsafe fn launch(&self, kernel: &str, grid: Grid, params: &mut [*mut c_void]) -> Result<(), DeviceError>;
    /// Computes a product. One of empty operands (`k` is 0) is an error.
    ///
    /// # Safety
    /// `a`, `b` and `d` must be live and as large as `product` says.
    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError>;
}
