//! Memory on a device: buffers, which are freed when their last owner is dropped, and the matrices in them.

use std::sync::Arc;

use half::bf16;

use super::{
    Device,
    driver::{Stream, Type},
    launch::{must, zero},
};
use crate::tensor::identity;

/// Memory on a device.
pub(in crate::tensor) struct Buffer {
    device: Device,
    address: u64,
    bytes: usize,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes on a device", self.bytes)
    }
}

impl Buffer {
    /// Memory with undefined content.
    pub(in crate::tensor) fn new(device: &Device, bytes: usize) -> Self {
        Self::on(Stream::Compute, device, bytes)
    }

    /// Memory with undefined content, for what is called on `stream`.
    pub(super) fn on(stream: Stream, device: &Device, bytes: usize) -> Self {
        // Whole words, so that memory can be cleared word by word.
        let bytes = bytes.max(1).next_multiple_of(4);
        Self { device: device.clone(), address: must(device.alloc(stream, bytes)), bytes }
    }

    /// A copy of `values`.
    pub(in crate::tensor) fn of<T: bytemuck::NoUninit>(device: &Device, values: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if let Some(address) = device.0.rounds.table(bytes) {
            return Self { device: device.clone(), address, bytes: bytes.len() };
        }
        let (driver, uploads) = (device.driver(), &device.0.uploads);
        let stream = uploads.stream_for(driver, bytes.len());
        let buffer = Self::on(stream, device, bytes.len());
        if !bytes.is_empty() {
            must(device.timed(|| "upload".into(), || uploads.fill(driver, stream, buffer.address, bytes)));
        }
        buffer
    }

    pub(in crate::tensor) fn device(&self) -> &Device {
        &self.device
    }

    pub(in crate::tensor) fn address(&self) -> u64 {
        self.address
    }

    /// Copies the first values to host memory. Waits for the device.
    pub(in crate::tensor) fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, to: &mut [T]) {
        if !to.is_empty() {
            must(self.device.waiting(|driver| driver.download(self.address, bytemuck::cast_slice_mut(to))));
        }
    }

    /// Overwrites bytes from `start`.
    pub(in crate::tensor) fn write(&self, start: usize, bytes: &[u8]) {
        debug_assert!(start + bytes.len() <= self.bytes);
        if !bytes.is_empty() {
            let to = self.address + start as u64;
            let overwrite = || self.device.0.uploads.overwrite(self.device.driver(), to, bytes);
            must(self.device.timed(|| "upload".into(), overwrite));
        }
    }

    /// Copies `bytes` from another buffer.
    pub(in crate::tensor) fn copy(&self, start: usize, from: &Self, from_start: usize, bytes: usize) {
        debug_assert!(start + bytes <= self.bytes && from_start + bytes <= from.bytes);
        if bytes > 0 {
            let (to, from) = (self.address + start as u64, from.address + from_start as u64);
            must(self.device.timed(|| "copy".into(), || self.device.driver().copy(to, from, bytes)));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self.address, self.bytes);
    }
}

/// A matrix on a device. Clones share memory until one is modified.
#[derive(Clone, Debug)]
pub(in crate::tensor) struct DeviceMat {
    pub(in crate::tensor) buffer: Arc<Buffer>,
    pub(in crate::tensor) rows: usize,
    pub(in crate::tensor) cols: usize,
    /// How the values are stored.
    pub(in crate::tensor) kind: Type,
    /// How the gradient is stored.
    pub(in crate::tensor) gradient: Type,
    /// The identity of its gradient. A modified matrix keeps it.
    pub(in crate::tensor) id: u64,
    /// A copy in bf16, of what is converted again and again: a bias, for every token. A modified matrix has none.
    pub(super) rounded: Option<Arc<Buffer>>,
}

/// Identity and shape of a matrix's gradient. Backward passes that don't need the matrix's values keep only this.
#[derive(Clone, Debug)]
pub(in crate::tensor) struct DeviceGhost {
    pub(in crate::tensor) device: Device,
    pub(in crate::tensor) rows: usize,
    pub(in crate::tensor) cols: usize,
    /// How the gradient is stored.
    pub(in crate::tensor) gradient: Type,
    pub(in crate::tensor) id: u64,
}

impl DeviceMat {
    /// The identity and shape of its gradient.
    pub(in crate::tensor) fn ghost(&self) -> DeviceGhost {
        let Self { rows, cols, gradient, id, .. } = *self;
        DeviceGhost { device: self.device().clone(), rows, cols, gradient, id }
    }

    /// A matrix with undefined content, whose gradient is stored like it.
    pub(in crate::tensor) fn new(device: &Device, rows: usize, cols: usize, kind: Type) -> Self {
        Self::of_buffer(Buffer::new(device, rows * cols * kind.size()), rows, cols, kind)
    }

    pub(super) fn of_buffer(buffer: impl Into<Arc<Buffer>>, rows: usize, cols: usize, kind: Type) -> Self {
        Self { buffer: buffer.into(), rows, cols, kind, gradient: kind, id: identity::new(), rounded: None }
    }

    /// A matrix of zeros.
    pub(in crate::tensor) fn zeros(device: &Device, rows: usize, cols: usize, kind: Type) -> Self {
        let mat = Self::new(device, rows, cols, kind);
        zero(&mat.buffer, rows * cols * kind.size());
        mat
    }

    /// Uploads row-major values.
    pub(in crate::tensor) fn from_host(device: &Device, rows: usize, cols: usize, kind: Type, values: &[f32]) -> Self {
        debug_assert_eq!(values.len(), rows * cols, "the number of values");
        let buffer = match kind {
            Type::F32 => Buffer::of(device, values),
            Type::Bf16 => Buffer::of(device, &rounded(values)),
        };
        Self::of_buffer(buffer, rows, cols, kind)
    }

    pub(in crate::tensor) fn device(&self) -> &Device {
        self.buffer.device()
    }

    pub(in crate::tensor) fn count(&self) -> usize {
        self.rows * self.cols
    }

    /// Bytes per row.
    pub(in crate::tensor) fn row_bytes(&self) -> usize {
        self.cols * self.kind.size()
    }

    /// The address of a row.
    pub(in crate::tensor) fn row_address(&self, row: usize) -> u64 {
        self.buffer.address() + (row * self.row_bytes()) as u64
    }

    /// All values, row-major.
    pub(in crate::tensor) fn to_host(&self) -> Vec<f32> {
        match self.kind {
            Type::F32 => {
                let mut values = vec![0.0; self.count()];
                self.buffer.read(&mut values);
                values
            }
            Type::Bf16 => {
                let mut values = vec![bf16::ZERO; self.count()];
                self.buffer.read(&mut values);
                values.into_iter().map(bf16::to_f32).collect()
            }
        }
    }

    /// Overwrites all values, which other matrices may share.
    fn upload(&self, values: &[f32]) {
        match self.kind {
            Type::F32 => self.buffer.write(0, bytemuck::cast_slice(values)),
            Type::Bf16 => self.buffer.write(0, bytemuck::cast_slice(&rounded(values))),
        }
    }

    /// Replaces all values. Does not change clones.
    pub(in crate::tensor) fn copy_from(&mut self, values: &[f32]) {
        self.rounded = None;
        if Arc::strong_count(&self.buffer) > 1 {
            self.buffer = Arc::new(Buffer::new(self.device(), self.count() * self.kind.size()));
        }
        self.upload(values);
    }

    /// Makes the memory this matrix's own, so that it can be modified: copied first if a clone shares it.
    pub(in crate::tensor) fn make_unique(&mut self) {
        self.rounded = None;
        if Arc::strong_count(&self.buffer) > 1 {
            let bytes = self.count() * self.kind.size();
            let copy = Buffer::new(self.device(), bytes);
            copy.copy(0, &self.buffer, 0, bytes);
            self.buffer = Arc::new(copy);
        }
    }
}

fn rounded(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|value| bf16::from_f32(*value)).collect()
}
