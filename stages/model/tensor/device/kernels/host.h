// The operations of device.h on the CPU, and what CUDA itself offers to kernels.
#pragma once
#include <cmath>

#include "scheduler.h"

typedef unsigned short bf16;

#define __global__
#define __device__
#define __restrict__
#define KERNEL_OF(threads) static void
#define DEVICE static inline
#define SKIP_REST(condition) \
    if (condition) break

#define threadIdx host::thread_index
#define blockIdx host::block_index
#define blockDim (host::world->block)
#define gridDim (host::world->grid)
#define __syncthreads() host::sync_block()

DEVICE unsigned char* shared_memory() { return host::world->shared; }

template <int BYTES> DEVICE unsigned char* block_scratch() {
    static_assert(BYTES <= host::SCRATCH, "more than the emulation has");
    return host::world->scratch;
}

DEVICE float as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

DEVICE uint32_t as_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

DEVICE float widen(bf16 b) { return as_float((uint32_t)b << 16); }

// To nearest, ties to even.
DEVICE bf16 narrow(float f) {
    uint32_t bits = as_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

DEVICE uint32_t pack(float low, float high) { return narrow(low) | (uint32_t)narrow(high) << 16; }

DEVICE float widen_f16(unsigned short h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 0) return as_float(sign | as_bits(mantissa * as_float(0x33800000)));  // times 2^-24
    if (exponent == 31) return as_float(sign | 0x7f800000 | mantissa << 13);
    return as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Unlike the GPU's, not blind to NaNs.
DEVICE float larger(float a, float b) { return a > b ? a : b; }
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }

namespace host {

// What a butterfly of shuffles gives: in each step a lane joins its value with that of lane ^ mask, for the masks from
// WIDTH / 2 down to 1. Both get the same bits, so one of them is enough.
template <int N, int WIDTH, bool MAX> inline void butterfly(Slot* lanes) {
    for (int i = 0; i < N; i++) {
        for (int first = 0; first < LANES; first += WIDTH) {
            float values[WIDTH];
            for (int l = 0; l < WIDTH; l++) values[l] = as_float(lanes[first + l].in[i]);
            for (int half = WIDTH / 2; half; half /= 2) {
                for (int l = 0; l < half; l++) {
                    float a = values[l], b = values[l + half];
                    values[l] = MAX ? larger(a, b) : a + b;
                }
            }
            for (int l = 0; l < WIDTH; l++) lanes[first + l].out[i] = as_bits(values[0]);
        }
    }
}

template <int WIDTH, bool MAX> inline float join(float v) {
    Slot mine;
    mine.in[0] = as_bits(v);
    return as_float(meet(butterfly<1, WIDTH, MAX>, mine).out[0]);
}

// Element i of the fragment of lane l is (row, column): PTX manual, "Matrix fragments for mma.m16n8k16".
inline void multiply(Slot* lanes) {
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < LANES; l++) {
        int group = l / 4, pair = l % 4 * 2;
        for (int i = 0; i < 8; i++) {
            bf16 value = (bf16)(lanes[l].in[i / 2] >> i % 2 * 16);
            a[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = widen(value);
        }
        for (int i = 0; i < 4; i++) {
            bf16 value = (bf16)(lanes[l].in[4 + i / 2] >> i % 2 * 16);
            b[pair + i % 2 + i / 2 * 8][group] = widen(value);
        }
    }
    memset(c, 0, sizeof c);
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < 4; i++) lanes[l].out[i] = as_bits(c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
    }
}

template <bool TRANSPOSED> inline void load_matrices(Slot* lanes) {
    for (int l = 0; l < LANES; l++) {
        if ((uintptr_t)lanes[l].address % 16) {
            fail_later("ldmatrix: a row is not aligned to 16 bytes");
            return;
        }
    }
    for (int l = 0; l < LANES; l++) {
        for (int matrix = 0; matrix < 4; matrix++) {
            uint32_t word = 0;
            for (int i = 0; i < 2; i++) {
                int row = TRANSPOSED ? l % 4 * 2 + i : l / 4;
                int column = TRANSPOSED ? l / 4 : l % 4 * 2 + i;
                const bf16* from = (const bf16*)lanes[matrix * 8 + row].address;
                word |= (uint32_t)from[column] << 16 * i;
            }
            lanes[l].out[matrix] = word;
        }
    }
}

}  // namespace host

DEVICE float warp_sum(float v) { return host::join<32, false>(v); }
template <int N> DEVICE void warp_sums(float (&v)[N]) {
    host::Slot mine;
    memcpy(mine.in, v, sizeof v);
    memcpy(v, host::meet(host::butterfly<N, 32, false>, mine).out, sizeof v);
}
DEVICE float warp_max(float v) { return host::join<32, true>(v); }
DEVICE float quad_sum(float v) { return host::join<4, false>(v); }
DEVICE float quad_max(float v) { return host::join<4, true>(v); }

DEVICE void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    host::Slot mine;
    memcpy(mine.in, a, 16);
    memcpy(mine.in + 4, b, 8);
    const host::Slot& got = host::meet(host::multiply, mine);
    for (int i = 0; i < 4; i++) c[i] += as_float(got.out[i]);
}

template <bool TRANSPOSED> DEVICE void ldmatrix_x4(uint32_t (&r)[4], const bf16* row) {
    host::Slot mine;
    mine.address = row;
    memcpy(r, host::meet(host::load_matrices<TRANSPOSED>, mine).out, 16);
}

DEVICE void copy16(void* to, const void* from, bool valid) {
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) host::fail("cp.async: not aligned to 16 bytes");
    host::start_copy({to, from, valid});
}

DEVICE void copy_commit() { host::commit_copies(); }

template <int LEFT> DEVICE void copy_wait() { host::finish_copies(host::self(), LEFT); }
