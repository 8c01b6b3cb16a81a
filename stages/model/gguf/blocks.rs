//! ggml's encodings of weights: 32 in a block with one or two f16 factors. Reference: ggml's `ggml-quants.c`.

use half::{bf16, f16};

/// How values are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    /// `(q - 8) * d`, 4 bits.
    Q4_0,
    /// `q * d + m`, 4 bits.
    Q4_1,
    /// `q * d`, 8 bits.
    Q8_0,
}

const BLOCK: usize = 32;

impl Encoding {
    /// ggml's number of it.
    pub(super) fn by_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            2 => Some(Self::Q4_0),
            3 => Some(Self::Q4_1),
            8 => Some(Self::Q8_0),
            30 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Values in a block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + 16),
            Self::Q4_1 => (BLOCK, 2 + 2 + 16),
            Self::Q8_0 => (BLOCK, 2 + 32),
        }
    }

    /// Bytes of `count` values; `None` if they are no whole blocks.
    pub(super) fn size(self, count: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        count.is_multiple_of(values).then(|| (count / values).checked_mul(bytes))?
    }
}

/// All values in f32.
pub(super) fn widen(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    let blocks = bytes.chunks_exact(encoding.block().1);
    match encoding {
        Encoding::F32 => blocks.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Encoding::F16 => blocks.map(half).collect(),
        Encoding::Bf16 => blocks.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Encoding::Q4_0 => blocks.flat_map(|b| nibbles(&b[2..], half(b), -8.0 * half(b))).collect(),
        Encoding::Q4_1 => blocks.flat_map(|b| nibbles(&b[4..], half(b), half(&b[2..]))).collect(),
        Encoding::Q8_0 => blocks
            .flat_map(|b| {
                let scale = half(b);
                b[2..].iter().map(move |q| f32::from(q.cast_signed()) * scale)
            })
            .collect(),
    }
}

/// The low halves of 16 bytes are the first 16 values, the high halves the others.
fn nibbles(bytes: &[u8], scale: f32, shift: f32) -> impl Iterator<Item = f32> + '_ {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4)).map(move |q| f32::from(q) * scale + shift)
}
