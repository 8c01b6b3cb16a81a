// What many kernels share: loads and stores by type, sums over a block, indices.
#pragma once

#define KERNEL KERNEL_OF(256)

DEVICE float load(const float* from, size_t i) { return from[i]; }
DEVICE float load(const bf16* from, size_t i) { return widen(from[i]); }
DEVICE void store(float* to, size_t i, float value) { to[i] = value; }
DEVICE void store(bf16* to, size_t i, float value) { to[i] = narrow(value); }

// Writes a gradient.
template <class V> DEVICE void put(V* to, size_t i, float value, int add) {
    store(to, i, add ? load(to, i) + value : value);
}

// The element of a thread in an elementwise kernel.
DEVICE long long element() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// Joins one value per warp, in order. The first barrier keeps an earlier use of the scratch apart.
template <bool MAX> DEVICE float join_warps(float v) {
    float* part = (float*)block_scratch<128>();
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float all = part[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) all = MAX ? larger(all, part[warp]) : all + part[warp];
    return all;
}

// The sum over the threads of a block, in all of them.
DEVICE float block_sum(float v) { return join_warps<false>(warp_sum(v)); }
DEVICE float block_max(float v) { return join_warps<true>(warp_max(v)); }

// The sum over a block of 256 threads, in thread 0. Called once in a kernel.
DEVICE double block_sum_f64(double v) {
    double* part = (double*)block_scratch<256 * 8>();
    part[threadIdx.x] = v;
    for (unsigned half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    return part[0];
}
