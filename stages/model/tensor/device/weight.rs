//! A frozen weight's copy on a device: in the type of the products' operands, or in 4 bits, widened when it is used.

use std::sync::Arc;

use half::bf16;

use super::{
    Device,
    driver::Type,
    launch::Kernel,
    memory::{Buffer, DeviceMat},
};
use crate::{
    encoding::{Encoding, q4f16},
    tensor::Stored,
};

/// Values that are uploaded at once: the copy of a weight is never whole in host memory in f32.
const PIECE: usize = 1 << 22;

/// A frozen matrix `[rows, cols]` on a device.
#[derive(Clone, Debug)]
pub(in crate::tensor) struct DeviceWeight {
    content: Content,
    rows: usize,
    cols: usize,
}

#[derive(Clone, Debug)]
enum Content {
    Plain(DeviceMat),
    Q4f16 { levels: Arc<Buffer>, scales: Arc<Buffer> },
}

impl DeviceWeight {
    /// Uploads `stored` as `kind`; 4-bit weights stay in 4 bits.
    pub(in crate::tensor) fn upload(device: &Device, stored: &Stored, kind: Type) -> Self {
        let (rows, cols) = (stored.rows(), stored.cols());
        let content = match stored.q4f16_parts() {
            Some((levels, scales)) => Content::Q4f16 {
                levels: Arc::new(Buffer::of(device, levels)),
                scales: Arc::new(Buffer::of(device, scales)),
            },
            None => Content::Plain(upload(device, stored, kind)),
        };
        Self { content, rows, cols }
    }

    /// All values as `kind`, the type of the operands for which the weight was uploaded.
    pub(in crate::tensor) fn operand(&self, kind: Type) -> Arc<Buffer> {
        match &self.content {
            Content::Plain(mat) => Arc::clone(&mat.buffer),
            Content::Q4f16 { levels, scales } => {
                let wide = DeviceMat::new(levels.device(), self.rows, self.cols, kind);
                Kernel::of(levels.device(), "widen_q4", kind)
                    .at(levels)
                    .at(scales)
                    .at(&wide.buffer)
                    .int(self.cols)
                    .int(q4f16::words_per_row(self.cols))
                    .int(q4f16::scales_per_row(self.cols))
                    .by_rows(self.rows);
                wide.buffer
            }
        }
    }

    /// The matrix, unless it is in 4 bits.
    pub(in crate::tensor) fn plain(&self) -> Option<&DeviceMat> {
        if let Content::Plain(mat) = &self.content { Some(mat) } else { None }
    }
}

/// Uploads in pieces of whole rows.
fn upload(device: &Device, stored: &Stored, kind: Type) -> DeviceMat {
    let (rows, cols) = (stored.rows(), stored.cols());
    let mat = DeviceMat::new(device, rows, cols, kind);
    let same = match kind {
        Type::F32 => stored.raw(Encoding::F32),
        Type::Bf16 => stored.raw(Encoding::Bf16),
    };
    let step = (PIECE / cols.max(1)).max(1);
    let mut values = vec![0.0_f32; step.min(rows) * cols];
    for start in (0..rows).step_by(step) {
        let bytes = start * mat.row_bytes()..(start + step).min(rows) * mat.row_bytes();
        if let Some(same) = same {
            mat.buffer.write(bytes.start, &same[bytes]);
            continue;
        }
        let values = &mut values[..bytes.len() / kind.size()];
        stored.widen_parallel(start, values);
        match kind {
            Type::F32 => mat.buffer.write(bytes.start, bytemuck::cast_slice(values)),
            Type::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
                mat.buffer.write(bytes.start, bytemuck::cast_slice(&rounded));
            }
        }
    }
    mat
}
