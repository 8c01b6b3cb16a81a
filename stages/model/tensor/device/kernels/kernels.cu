// All kernels, as one translation unit: NVRTC compiles it for GPUs (.ci/ptx), a C++ compiler for the tests (build.rs).
//
// Sums are in f32 and in an order that shapes alone determine; there are no atomics. Gradient kernels take `add`: 1 adds
// to what is in the output, 0 overwrites it, whatever it holds.
//
// Most kernels have an entry for activations in f32 and one for bf16: the files with them are included twice, with
// `Value` as the type and `TYPED` as what appends it to the name.
#ifdef __CUDACC_RTC__
#include "device.h"
#else
#include "host.h"
#endif

#include "common.cuh"
#include "single.cuh"
#include "attention.cuh"
#include "lanes.cuh"
#include "optimizer.cuh"

#define Value float
#define TYPED(kernel) kernel##_f32
#include "norm.cuh"
#include "pointwise.cuh"
#include "gather.cuh"
#include "loss.cuh"
#include "attention_any.cuh"
#undef Value
#undef TYPED

#define Value bf16
#define TYPED(kernel) kernel##_bf16
#include "norm.cuh"
#include "pointwise.cuh"
#include "gather.cuh"
#include "loss.cuh"
#include "attention_any.cuh"
#undef Value
#undef TYPED

#ifndef __CUDACC_RTC__
#include "host_table.h"
#endif
