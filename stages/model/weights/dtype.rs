//! Maps the float types of safetensors files to encodings and back.

use safetensors::Dtype;

use crate::encoding::Encoding;

const ENCODINGS: [(Dtype, Encoding); 3] =
    [(Dtype::F32, Encoding::F32), (Dtype::F16, Encoding::F16), (Dtype::BF16, Encoding::Bf16)];

pub(super) fn encoding_of(dtype: Dtype) -> Option<Encoding> {
    ENCODINGS.into_iter().find(|(theirs, _)| *theirs == dtype).map(|(_, ours)| ours)
}

pub(super) fn dtype_of(encoding: Encoding) -> Option<Dtype> {
    ENCODINGS.into_iter().find(|(_, ours)| *ours == encoding).map(|(theirs, _)| theirs)
}
