//! A library that takes the place of NVIDIA's driver and of cuBLASLt, for tests on machines without a GPU: what the program calls
//! in them, as CUDA's documentation describes it, and no more. So the code that calls CUDA runs, not only the kernels.
//!
//! - Each call is checked (`devices.rs`, `order.rs`, `graphs.rs`, `memory.rs`, `kernels.rs`): whether the thread has a context, whether handles are alive and belong to it, whether addresses lie in
//!   memory that is there and that this device may use, whether a kernel is in the PTX and may have so much shared memory. What is
//!   wrong is an error, as CUDA's would be, and a line on standard error that begins with `fake CUDA`.
//! - What is called on a stream runs only when somebody waits for it (`streams.rs`): what the program does not wait for is missing.
//! - Kernels are the emulated ones of `imp-model`, with the bytes of each parameter that its PTX declares (`ptx.rs`).
//! - Products are computed from the descriptions that cuBLASLt is given (`blas.rs`).
//!
//! `FAKE_CUDA_MEMORY` has the bytes of memory of each GPU, separated by commas; without it there is one with 16 GiB. With
//! `FAKE_CUDA_APART=1` they have no way to each other; with `FAKE_CUDA_PEERS=lose` copies between them are lost, and with `fail` they
//! fail, and all that comes after. `FAKE_CUDA_CUBLAS` is cuBLASLt's version. What is
//! wrong is also written to the file `FAKE_CUDA_LOG`. `FAKE_CUDA_FULL` refuses each `launch` or
//! `product` for want of memory, and `FAKE_CUDA_GRAPHS` the end of each `capture`, or to `instantiate` or `launch` a graph.
//!
//! To use it: `cargo build -p imp-model --features emulated --example fake_cuda`, links to the result with the names
//! `libcuda.so` and `libcublasLt.so` in a folder, and that folder in `LD_LIBRARY_PATH`.
#![allow(unsafe_code, non_snake_case, clippy::missing_safety_doc, clippy::print_stderr)]

mod blas;
mod devices;
mod graphs;
mod kernels;
mod memory;
mod order;
mod ptx;
mod streams;
mod world;

// Links its kernels.
use imp_model as _;
