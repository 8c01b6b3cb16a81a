//! Products by cuBLASLt.
#![allow(unsafe_code)]

use std::{collections::HashMap, ffi::c_void, ptr};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue, cublasLtHandle_t as Handle,
            cublasLtMatmulAlgo_t as Algorithm, cublasLtMatmulAlgoConfigAttributes_t,
            cublasLtMatmulAlgoConfigGetAttribute, cublasLtMatmulDesc_t as Description,
            cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preference,
            cublasLtMatrixLayout_t as MatrixLayout, cublasStatus_t, cudaDataType as Data,
        },
    },
    driver::{result::memcpy_dtod_async, sys::CUstream},
};

use super::library::mistakes_bias_of_one_row;
use crate::tensor::device::driver::{Product, Type};

/// Bytes of the workspace: what NVIDIA recommends for Hopper. Fixed, since the algorithm depends on it.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Sums of a product that is split are joined in f32 by a fixed order, never in the type of the output.
const REDUCTIONS_IN_F32: u32 = 2;
/// No product is split.
const NO_REDUCTIONS: u32 = 0;

/// A matrix as cuBLAS sees it: column-major, without gaps between columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tensor::device) struct Layout {
    pub(in crate::tensor::device) rows: usize,
    pub(in crate::tensor::device) cols: usize,
}

/// A product as cuBLAS takes it. Our row-major `d` `[m, n]` is its column-major `[n, m]`, so it multiplies `b^T` by `a^T`:
/// `b` comes first. Its bias goes along its rows, our columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tensor::device) struct ColumnMajor {
    pub(in crate::tensor::device) first: Layout,
    pub(in crate::tensor::device) second: Layout,
    pub(in crate::tensor::device) result: Layout,
    /// Whether `first` and `second` are transposed.
    pub(in crate::tensor::device) transposed: [bool; 2],
}

impl ColumnMajor {
    pub(in crate::tensor::device) fn of(product: &Product) -> Self {
        let Product { m, n, k, a_transposed, b_transposed, .. } = *product;
        let stored = |rows, cols, transposed| {
            if transposed { Layout { rows: cols, cols: rows } } else { Layout { rows, cols } }
        };
        Self {
            first: stored(n, k, b_transposed),
            second: stored(k, m, a_transposed),
            result: Layout { rows: n, cols: m },
            transposed: [b_transposed, a_transposed],
        }
    }
}

/// All that the choice of an algorithm depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    transposed: [bool; 2],
    operands: Type,
    out: Type,
    bias: bool,
    /// Of the two operands and the output, in bytes.
    alignments: [u32; 3],
}

/// Products on one stream.
pub(super) struct Products {
    handle: Handle,
    workspace: u64,
    /// See [`mistakes_bias_of_one_row`].
    adds_bias: bool,
    /// Chosen once, so that the same product always has the same bits.
    algorithms: HashMap<Key, Algorithm>,
}

// SAFETY: a handle can be used by any thread, by one at a time; `&mut self` says that.
unsafe impl Send for Products {}

/// Descriptions of cuBLASLt, which are destroyed at the end of a call.
struct Call {
    description: Description,
    first: MatrixLayout,
    second: MatrixLayout,
    result: MatrixLayout,
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: made in `Call::new`, or null, which is ignored.
        unsafe {
            for layout in [self.first, self.second, self.result].into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            if !self.description.is_null() {
                let _ = result::destroy_matmul_desc(self.description);
            }
        }
    }
}

impl Call {
    fn new(product: &Product) -> Result<Self, CublasError> {
        let shape = ColumnMajor::of(product);
        let layout = |stored, of: Layout| {
            // Column-major without gaps: a column begins `rows` values after the one before.
            result::create_matrix_layout(data(stored), of.rows as u64, of.cols as u64, of.rows as i64)
        };
        let null = ptr::null_mut();
        let mut call = Self { description: ptr::null_mut(), first: null, second: null, result: null };
        call.first = layout(product.operands, shape.first)?;
        call.second = layout(product.operands, shape.second)?;
        call.result = layout(product.out, shape.result)?;
        // Products of f32 in f32, not in TF32.
        call.description = result::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, Data::CUDA_R_32F)?;
        let [first, second] = shape.transposed.map(i32::from);
        call.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &first)?;
        call.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &second)?;
        if let Some(bias) = &product.bias {
            call.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &Epilogue::CUBLASLT_EPILOGUE_BIAS)?;
            call.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
            call.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data(product.out))?;
        }
        Ok(call)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        // SAFETY: the value is copied, with its size.
        unsafe {
            result::set_matmul_desc_attribute(self.description, attribute, ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

fn data(stored: Type) -> Data {
    match stored {
        Type::F32 => Data::CUDA_R_32F,
        Type::Bf16 => Data::CUDA_R_16BF,
    }
}

/// The largest power of two up to 256 that divides an address.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

impl Products {
    /// `workspace`: the address of [`WORKSPACE`] bytes.
    pub(super) fn new(workspace: u64) -> Result<Self, CublasError> {
        let adds_bias = mistakes_bias_of_one_row();
        Ok(Self { handle: result::create_handle()?, workspace, adds_bias, algorithms: HashMap::new() })
    }

    /// Starts a product.
    ///
    /// # Safety
    /// As for `Driver::product`. The context of the stream must be the thread's.
    pub(super) unsafe fn start(
        &mut self,
        stream: CUstream,
        [a, b, d]: [u64; 3],
        product: &Product,
    ) -> Result<(), CublasError> {
        let mut product = *product;
        if let Some(bias) = product.bias.filter(|_| self.adds_bias && product.m == 1 && product.beta == 0.0) {
            // The product is added to the bias, whose type is that of the output.
            // SAFETY: both have `n` values, as the caller says.
            unsafe { memcpy_dtod_async(d, bias, product.n * bytes(product.out), stream) }
                .map_err(|_| CublasError(cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED))?;
            (product.bias, product.beta) = (None, 1.0);
        }
        let call = Call::new(&product)?;
        let algorithm = self.algorithm(&call, [a, b, d], &product)?;
        let (alpha, beta) = (product.alpha, product.beta);
        // SAFETY: the descriptions have the shapes that the caller vouches for.
        unsafe {
            result::matmul(
                self.handle,
                call.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b as *const c_void,
                call.first,
                a as *const c_void,
                call.second,
                d as *const c_void,
                call.result,
                d as *mut c_void,
                call.result,
                &raw const algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
    }

    fn algorithm(&mut self, call: &Call, addresses: [u64; 3], product: &Product) -> Result<Algorithm, CublasError> {
        let key = Key {
            shape: [product.m, product.n, product.k],
            transposed: [product.a_transposed, product.b_transposed],
            operands: product.operands,
            out: product.out,
            bias: product.bias.is_some(),
            alignments: addresses.map(alignment),
        };
        if let Some(algorithm) = self.algorithms.get(&key) {
            return Ok(*algorithm);
        }
        let mut algorithm = find(self.handle, call, key.alignments, REDUCTIONS_IN_F32)?;
        if !splits_evenly(&algorithm, product.k)? {
            algorithm = find(self.handle, call, key.alignments, NO_REDUCTIONS)?;
            if !splits_evenly(&algorithm, product.k)? {
                return Err(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
            }
        }
        self.algorithms.insert(key, algorithm);
        Ok(algorithm)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and not used after this.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn bytes(stored: Type) -> usize {
    match stored {
        Type::F32 => 4,
        Type::Bf16 => 2,
    }
}

/// Whether a sum of `k` products is split into parts of one length. From 12.6.3 until 13.8.0 cuBLASLt may lose the end of a sum that
/// is not, on Hopper and later (6580689 in the release notes of CUDA 13.4).
fn splits_evenly(algorithm: &Algorithm, k: usize) -> Result<bool, CublasError> {
    let (mut parts, mut written) = (0_u32, 0);
    let attribute = cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM;
    // SAFETY: the attribute has 4 bytes.
    unsafe { cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, (&raw mut parts).cast(), 4, &raw mut written) }
        .result()?;
    Ok(parts < 2 || k.is_multiple_of(parts as usize))
}

/// Asks cuBLASLt for the algorithm that it takes for the fastest.
fn find(handle: Handle, call: &Call, [a, b, d]: [u32; 3], reductions: u32) -> Result<Algorithm, CublasError> {
    let preference = result::create_matmul_pref()?;
    let workspace = WORKSPACE as u64;
    let settings: [(Preference, *const c_void, usize); 6] = [
        (Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8),
        (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const reductions).cast(), 4),
        // Ours are the other way round: `b` comes first.
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const b).cast(), 4),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const a).cast(), 4),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const d).cast(), 4),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const d).cast(), 4),
    ];
    // SAFETY: the values live until the end of the function and have these sizes; the descriptions are those of `call`.
    unsafe {
        let set = |(setting, value, size)| result::set_matmul_pref_attribute(preference, setting, value, size);
        let found = settings.into_iter().try_for_each(set).and_then(|()| {
            let Call { description, first, second, result: out } = *call;
            result::get_matmul_algo_heuristic(handle, description, first, second, out, out, preference)
        });
        let _ = result::destroy_matmul_pref(preference);
        Ok(found?.algo)
    }
}
