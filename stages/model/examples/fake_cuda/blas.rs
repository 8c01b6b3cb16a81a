//! cuBLASLt's functions (cublasLt.h): products of column-major matrices, as they are described.

use std::{
    collections::BTreeMap,
    ffi::{c_int, c_uint, c_void},
    hash::{DefaultHasher, Hash, Hasher},
    slice,
    sync::{Mutex, PoisonError},
};

use half::bf16;

use crate::world::{Code, Failed, attempt, complain};

/// 13.1.0, unless `FAKE_CUDA_CUBLAS` says another.
const VERSION: usize = 130_100;
/// `cublasStatus_t`.
const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 7;
const ALLOC_FAILED: u32 = 3;
const EXECUTION_FAILED: u32 = 13;
/// `CUBLAS_COMPUTE_32F`, `CUDA_R_32F`, `CUDA_R_16BF`, `CUBLASLT_EPILOGUE_BIAS`.
const COMPUTE_F32: c_uint = 68;
const F32: c_uint = 0;
const BF16: c_uint = 14;
const BIAS: u64 = 4;
/// `cublasLtMatmulDescAttributes_t`: `TRANSA`, `TRANSB`, `EPILOGUE`, `BIAS_POINTER`, `BIAS_DATA_TYPE`, with their sizes.
const DESCRIPTION: [(c_uint, usize); 5] = [(3, 4), (4, 4), (7, 4), (8, 8), (26, 4)];
/// `cublasLtMatmulPreferenceAttributes_t`: `MAX_WORKSPACE_BYTES`, `REDUCTION_SCHEME_MASK`, `MIN_ALIGNMENT_A_BYTES` and for
/// B, C and D, with their sizes.
const PREFERENCE: [(c_uint, usize); 6] = [(1, 8), (3, 4), (5, 4), (6, 4), (7, 4), (8, 4)];
/// `CUBLASLT_ALGO_CONFIG_SPLITK_NUM`.
const SPLIT_K: c_uint = 2;

/// What a handle stands for: its attributes by number.
#[derive(Clone)]
enum Described {
    /// With the number of the GPU.
    Handle(usize),
    Product(BTreeMap<c_uint, u64>),
    Preference(BTreeMap<c_uint, u64>),
    Matrix {
        kind: c_uint,
        rows: u64,
        cols: u64,
        ld: i64,
    },
}

static DESCRIBED: Mutex<(usize, BTreeMap<usize, Described>)> = Mutex::new((1, BTreeMap::new()));

/// `cublasLtMatmulAlgo_t`: here the split of the sum, the alignments, and the product that it was chosen for.
#[repr(C)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Found {
    algorithm: Algorithm,
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [c_int; 4],
}

fn with<T>(work: impl FnOnce(&mut (usize, BTreeMap<usize, Described>)) -> T) -> T {
    work(&mut DESCRIBED.lock().unwrap_or_else(PoisonError::into_inner))
}

unsafe fn create(handle: *mut usize, described: Described) -> u32 {
    with(|(next, all)| {
        *next += 1;
        all.insert(*next, described);
        // SAFETY: the caller gives a place for it.
        unsafe { handle.write(*next) };
    });
    SUCCESS
}

fn destroy(handle: usize) -> u32 {
    if with(|(_, all)| all.remove(&handle)).is_some() {
        SUCCESS
    } else {
        misuse("a handle that does not exist is destroyed")
    }
}

fn misuse(what: &str) -> u32 {
    complain(&format!("cuBLASLt: {what}"));
    INVALID_VALUE
}

fn get(handle: usize) -> Option<Described> {
    with(|(_, all)| all.get(&handle).cloned())
}

/// Sets an attribute of one of these numbers and sizes.
unsafe fn set(handle: usize, known: &[(c_uint, usize)], attribute: c_uint, value: *const c_void, bytes: usize) -> u32 {
    if !known.contains(&(attribute, bytes)) {
        return misuse(&format!("no attribute {attribute} of {bytes} bytes is known here"));
    }
    let mut read = 0_u64;
    // SAFETY: the caller gives so many bytes, at most eight.
    unsafe { value.cast::<u8>().copy_to_nonoverlapping((&raw mut read).cast(), bytes) };
    with(|(_, all)| match all.get_mut(&handle) {
        Some(Described::Product(attributes) | Described::Preference(attributes)) => {
            attributes.insert(attribute, read);
            SUCCESS
        }
        _ => misuse("an attribute of a handle that does not exist"),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    std::env::var("FAKE_CUDA_CUBLAS").ok().and_then(|version| version.parse().ok()).unwrap_or(VERSION)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(handle: *mut usize) -> u32 {
    match attempt("cublasLtCreate", |world| world.current()) {
        Ok(gpu) => unsafe { create(handle, Described::Handle(gpu)) },
        Err(_) => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(handle: usize) -> u32 {
    destroy(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescCreate(handle: *mut usize, compute: c_uint, scale: c_uint) -> u32 {
    if (compute, scale) != (COMPUTE_F32, F32) {
        return misuse("sums are to be in f32");
    }
    unsafe { create(handle, Described::Product(BTreeMap::new())) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescDestroy(handle: usize) -> u32 {
    destroy(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    handle: usize,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> u32 {
    unsafe { set(handle, &DESCRIPTION, attribute, value, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(handle: *mut usize) -> u32 {
    unsafe { create(handle, Described::Preference(BTreeMap::new())) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceDestroy(handle: usize) -> u32 {
    destroy(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    handle: usize,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> u32 {
    unsafe { set(handle, &PREFERENCE, attribute, value, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    handle: *mut usize,
    kind: c_uint,
    rows: u64,
    cols: u64,
    ld: i64,
) -> u32 {
    if ![F32, BF16].contains(&kind) || rows == 0 || cols == 0 || ld < rows as i64 {
        return misuse(&format!("a matrix of type {kind}, [{rows}, {cols}], {ld} from column to column"));
    }
    unsafe { create(handle, Described::Matrix { kind, rows, cols, ld }) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutDestroy(handle: usize) -> u32 {
    destroy(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: usize,
    description: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    preference: usize,
    requested: c_int,
    results: *mut Found,
    count: *mut c_int,
) -> u32 {
    let (Some(Described::Handle(gpu)), Some(Described::Preference(wishes))) = (get(handle), get(preference)) else {
        return misuse("an algorithm is asked for without a handle or a preference");
    };
    if requested < 1 || c != d || attempt("cublasLtMatmulAlgoGetHeuristic", |world| world.current()) != Ok(gpu) {
        return misuse("a number of algorithms, another C than D, or a handle of another GPU");
    }
    let shape = match Shape::of(description, [a, b, d]) {
        Ok(shape) => shape,
        Err(what) => return misuse(what),
    };
    let wish = |attribute| wishes.get(&attribute).copied().unwrap_or(256);
    // Where the sum may be split, it is split unevenly: the caller must not take that.
    let parts = if wish(3) == 0 || shape.k < 3 || shape.k.is_multiple_of(3) { 1 } else { 3 };
    let algorithm = Algorithm([parts, wish(5), wish(6), wish(8), wish(1), shape.key(), 0, 0]);
    // SAFETY: the caller gives places for at least one.
    unsafe {
        results.write(Found { algorithm, workspace: 0, state: SUCCESS, waves: 1.0, reserved: [0; 4] });
        count.write(1);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulAlgoConfigGetAttribute(
    algorithm: *const Algorithm,
    attribute: c_uint,
    value: *mut c_void,
    bytes: usize,
    written: *mut usize,
) -> u32 {
    if (attribute, bytes) != (SPLIT_K, 4) {
        return misuse("an attribute of an algorithm that is not known here");
    }
    // SAFETY: the caller gives an algorithm and places.
    unsafe {
        value.cast::<u32>().write((*algorithm).0[0] as u32);
        written.write(4);
    }
    SUCCESS
}

/// A product as it is described.
#[derive(Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    transposed: [bool; 2],
    kinds: [c_uint; 2],
    bias: Option<u64>,
}

impl Shape {
    fn of(description: usize, matrices: [usize; 3]) -> Result<Self, &'static str> {
        let Some(Described::Product(attributes)) = get(description) else { return Err("there is no such product") };
        let matrix = |handle| match get(handle) {
            // Gaps between columns are not needed here.
            Some(Described::Matrix { kind, rows, cols, ld }) if ld == rows as i64 => {
                Ok((kind, [rows as usize, cols as usize]))
            }
            _ => Err("there is no such matrix, or it has gaps"),
        };
        let [(kind, a), (other, b), (out, [m, n])] = [matrix(matrices[0])?, matrix(matrices[1])?, matrix(matrices[2])?];
        let of = |attribute| attributes.get(&attribute).copied().unwrap_or(0);
        let transposed = [of(3) == 1, of(4) == 1];
        let turned = |[rows, cols]: [usize; 2], transposed| if transposed { [cols, rows] } else { [rows, cols] };
        let ([a_rows, k], [b_rows, b_cols]) = (turned(a, transposed[0]), turned(b, transposed[1]));
        if (a_rows, b_rows, b_cols, other) != (m, k, n, kind) {
            return Err("matrices that can't be multiplied");
        }
        let bias = (of(7) == BIAS).then(|| of(8));
        if bias.is_some_and(|bias| of(26) != u64::from(out) || !bias.is_multiple_of(16)) {
            return Err("a bias of another type than the output, or not aligned to 16 bytes");
        }
        if (kind, out) == (F32, BF16) {
            return Err("no product of f32 is stored in bf16");
        }
        Ok(Self { m, n, k, transposed, kinds: [kind, out], bias })
    }

    /// A number for all that an algorithm is chosen for.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        Self { bias: self.bias.map(|_| 0), ..*self }.hash(&mut hasher);
        hasher.finish()
    }
}

fn size(kind: c_uint) -> usize {
    if kind == F32 { 4 } else { 2 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmul(
    handle: usize,
    description: usize,
    alpha: *const f32,
    a: u64,
    a_matrix: usize,
    b: u64,
    b_matrix: usize,
    beta: *const f32,
    c: u64,
    _: usize,
    d: u64,
    d_matrix: usize,
    algorithm: *const Algorithm,
    workspace: u64,
    workspace_bytes: usize,
    stream: usize,
) -> u32 {
    if std::env::var("FAKE_CUDA_FULL").is_ok_and(|what| what == "product") {
        return ALLOC_FAILED;
    }
    let shape = match Shape::of(description, [a_matrix, b_matrix, d_matrix]) {
        Ok(shape) => shape,
        Err(what) => return misuse(what),
    };
    // SAFETY: the caller gives both factors, and an algorithm.
    let (alpha, beta, &Algorithm([parts, a_alignment, b_alignment, d_alignment, most, key, ..])) =
        unsafe { (*alpha, *beta, &*algorithm) };
    let Shape { m, n, k, kinds: [kind, out], bias, .. } = shape;
    let outcome = attempt("cublasLtMatmul", |world| {
        let places = [(a, m * k * size(kind)), (b, k * n * size(kind)), (d, m * n * size(out))];
        for (address, bytes) in places.into_iter().chain(bias.map(|bias| (bias, m * size(out)))) {
            world.check(address, bytes)?;
        }
        world.check(workspace, workspace_bytes)?;
        let aligned = [(a, a_alignment), (b, b_alignment), (d, d_alignment)];
        let is_aligned = aligned.iter().all(|(at, to)| at.is_multiple_of(*to));
        if c != d || most != workspace_bytes as u64 || !is_aligned || key != shape.key() {
            return Err(Failed::misuse(Code::InvalidValue, "not what the algorithm was chosen for"));
        }
        if !matches!(get(handle), Some(Described::Handle(gpu)) if world.current()? == gpu) {
            return Err(Failed::misuse(Code::InvalidValue, "a handle of another GPU"));
        }
        if parts > 1 && !(k as u64).is_multiple_of(parts) {
            return Err(Failed::misuse(Code::InvalidValue, "a sum that is split unevenly loses its end"));
        }
        let uses = [a, b, d, workspace, bias.unwrap_or(d)];
        world.queue(stream, &uses, move || {
            // SAFETY: all of it was checked above.
            unsafe { multiply(&shape, [a, b, d], alpha, beta) };
            Ok(())
        })
    });
    if outcome.is_ok() { SUCCESS } else { EXECUTION_FAILED }
}

/// `d = alpha op(a) op(b) + beta d + bias`, column-major, with sums in f32.
unsafe fn multiply(shape: &Shape, [a, b, d]: [u64; 3], alpha: f32, beta: f32) {
    let Shape { m, n, k, transposed, kinds: [kind, out], bias } = *shape;
    // SAFETY: as the caller says.
    let (left, right) = unsafe { (read(a, m * k, kind), read(b, k * n, kind)) };
    let bias = bias.map(|bias| unsafe { read(bias, m, out) });
    let old = (beta != 0.0).then(|| unsafe { read(d, m * n, out) });
    // Rows of op(a) and columns of op(b), each without gaps.
    let left: Vec<f32> = if transposed[0] { left } else { turned(&left, m, k) };
    let right: Vec<f32> = if transposed[1] { turned(&right, n, k) } else { right };
    let mut result = vec![0.0_f32; m * n];
    for (column, to) in result.chunks_mut(m).enumerate() {
        let of_column = &right[column * k..][..k];
        for (row, to) in to.iter_mut().enumerate() {
            let sum: f32 = left[row * k..][..k].iter().zip(of_column).map(|(a, b)| a * b).sum();
            let before = old.as_ref().map_or(0.0, |old| beta * old[column * m + row]);
            *to = alpha * sum + before + bias.as_ref().map_or(0.0, |bias| bias[row]);
        }
    }
    // SAFETY: as the caller says.
    unsafe {
        if out == F32 {
            slice::from_raw_parts_mut(d as *mut f32, m * n).copy_from_slice(&result);
        } else {
            let to = slice::from_raw_parts_mut(d as *mut bf16, m * n);
            to.iter_mut().zip(result).for_each(|(to, value)| *to = bf16::from_f32(value));
        }
    }
}

/// A column-major matrix `[rows, cols]`, row-major.
fn turned(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| (0..cols).map(move |col| values[col * rows + row])).collect()
}

/// Reads values as f32.
unsafe fn read(address: u64, count: usize, kind: c_uint) -> Vec<f32> {
    // SAFETY: as the caller says; all bits are values of both types.
    unsafe {
        if kind == F32 {
            slice::from_raw_parts(address as *const f32, count).to_vec()
        } else {
            slice::from_raw_parts(address as *const bf16, count).iter().map(|value| value.to_f32()).collect()
        }
    }
}
