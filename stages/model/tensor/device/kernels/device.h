// The operations that differ between a GPU (here, for sm_80 and later) and the CPU of the tests (host.h). All inline PTX
// is in this file. Needs no header of CUDA, so that NVRTC alone can compile it.
#pragma once

typedef unsigned int uint32_t;
typedef unsigned short bf16;

#define KERNEL_OF(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DEVICE __device__ __forceinline__
// Ends a loop that has nothing left to do: only on the CPU, since a branch costs a GPU more than idle lanes.
#define SKIP_REST(condition)

// Shared memory whose size the launch gives.
DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return bytes;
}

// Shared memory of a fixed size.
template <int BYTES> DEVICE unsigned char* block_scratch() {
    __shared__ __align__(16) unsigned char bytes[BYTES];
    return bytes;
}

DEVICE float widen(bf16 b) { return __uint_as_float((unsigned)b << 16); }

DEVICE bf16 narrow(float f) {
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(f));
    return r;
}

// Two values as bf16, the first in the lower half.
DEVICE uint32_t pack(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

DEVICE float widen_f16(unsigned short h) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
    return r;
}

DEVICE float larger(float a, float b) { return fmaxf(a, b); }

DEVICE float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// The sum over the 32 lanes of a warp, in all of them.
DEVICE float warp_sum(float v) {
    for (int mask = 16; mask; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
    return v;
}

// Several sums at once.
template <int N> DEVICE void warp_sums(float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = warp_sum(v[i]);
}

DEVICE float warp_max(float v) {
    for (int mask = 16; mask; mask /= 2) v = larger(v, __shfl_xor_sync(~0u, v, mask));
    return v;
}

// The sum over four neighbouring lanes: they share the rows of a fragment.
DEVICE float quad_sum(float v) {
    for (int mask = 2; mask; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
    return v;
}

DEVICE float quad_max(float v) {
    for (int mask = 2; mask; mask /= 2) v = larger(v, __shfl_xor_sync(~0u, v, mask));
    return v;
}

// c [16 x 8] += a [16 x 16] b [16 x 8], in the fragments of the PTX manual.
DEVICE void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Four matrices of 8 x 8: lane l gives the address of row l % 8 of matrix l / 8.
template <bool TRANSPOSED> DEVICE void ldmatrix_x4(uint32_t (&r)[4], const bf16* row) {
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
    }
}

// Starts the copy of 16 bytes to shared memory; of zeros if not `valid`.
DEVICE void copy16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `LEFT` of this thread's groups of copies are under way.
template <int LEFT> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
