// Attention over packed sequences by tensor cores, in bf16 with f32 sums, without a matrix of all scores.
//
// A block has four warps, and each warp 16 rows of a tile of 64. `D` is the width of a head in shared memory, a multiple
// of 16; the true one, `dim`, is a multiple of 8 (SigLIP's 72 lies in 80): the rest is loaded as zeros. Rows in shared
// memory are 8 values longer than `D`, so that `ldmatrix` has no bank conflicts. Rows beyond the sequence are loaded as
// zeros too, not only masked: 0 times what lies there could be NaN.
//
// Scores and `lse` are in base 2: exp2(s * scale * log2(e) - lse) is the probability.
#pragma once

struct Attention {
    // Query heads; how many of them share a key head; width of a head; widths of rows.
    int heads, group, dim, q_stride, kv_stride;
    // With a window w (0: none), position p attends to p - w + 1..=p.
    int causal, window;
    float scale;
};

#define TILE 64
#define ATTENTION_KERNEL KERNEL_OF(128)
#define LOG2_E 1.4426950408889634f
// Less than every score. Finite, so that the difference of two of them is not NaN.
#define HIDDEN -1e30f

// Rows `first..first + TILE` of the sequence `start..end`.
struct Tile {
    int start, first, end;
};

struct Range {
    int from, to;
};

DEVICE Tile own_tile(const int* tiles) {
    const int* of = tiles + (size_t)blockIdx.x * 3;
    Tile tile = {of[0], of[1], of[2]};
    return tile;
}

DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// The keys that any row of a tile of `rows` queries sees. With one row: the keys that it sees.
DEVICE Range keys_of(const Attention& shape, Tile tile, int rows) {
    Range keys = {tile.start, shape.causal ? smaller(tile.first + rows, tile.end) : tile.end};
    if (shape.window && tile.first - tile.start >= shape.window) keys.from = tile.first - shape.window + 1;
    return keys;
}

// The queries that see any row of a tile of `rows` keys. With one row: those that see it.
DEVICE Range queries_of(const Attention& shape, Tile tile, int rows) {
    Range queries = {shape.causal ? tile.first : tile.start, tile.end};
    // Subtracted from the other side, since a window may be as large as an int.
    if (shape.window && shape.window <= tile.end - tile.first - rows) queries.to = tile.first + rows + shape.window - 1;
    return queries;
}

DEVICE bool inside(Range range, int at) { return (unsigned)(at - range.from) < (unsigned)(range.to - range.from); }

template <int D> struct Shared {
    enum { STRIDE = D + 8, VALUES = TILE * STRIDE };
};

template <int D> DEVICE void load_tile(bf16* to, const bf16* from, int stride, int rows, int dim) {
    for (int i = threadIdx.x; i < TILE * (D / 8); i += blockDim.x) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        bool valid = row < rows && column < dim;
        copy16(to + row * Shared<D>::STRIDE + column, valid ? from + (size_t)row * stride + column : from, valid);
    }
}

// A of a product: 16 rows and 16 columns of a tile.
template <int D> DEVICE void load_a(uint32_t (&a)[4], const bf16* tile, int row, int column) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4<false>(a, tile + (row + lane % 16) * Shared<D>::STRIDE + column + lane / 16 * 8);
}

// B of two products, transposed: its 16 columns, from `n`, are rows of the tile.
template <int D> DEVICE void load_b_transposed(uint32_t (&b)[4], const bf16* tile, int n, int k) {
    int lane = threadIdx.x % 32;
    int row = n + lane % 8 + lane / 16 * 8, column = k + lane / 8 % 2 * 8;
    ldmatrix_x4<false>(b, tile + row * Shared<D>::STRIDE + column);
}

// B of two products: its rows, from `k`, are rows of the tile.
template <int D> DEVICE void load_b(uint32_t (&b)[4], const bf16* tile, int k, int n) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4<true>(b, tile + (k + lane % 16) * Shared<D>::STRIDE + n + lane / 16 * 8);
}

DEVICE void multiply_two(float (&left)[4], float (&right)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_16816(left, a, first);
    mma_16816(right, a, second);
}

// s [16 x 8 N] = 16 rows of `left`, from `row`, times the first 8 N rows of `right`, transposed.
template <int D, int N> DEVICE void times_transposed(float (&s)[N][4], const bf16* left, int row, const bf16* right) {
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4], b[4];
        load_a<D>(a, left, row, k);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            load_b_transposed<D>(b, right, j * 8, k);
            multiply_two(s[j], s[j + 1], a, b);
        }
    }
}

// o [16 x D] += p [16 x 8 N], rounded to bf16, times the first 8 N rows of the tile.
template <int D, int N> DEVICE void add_times(float (&o)[D / 8][4], const float (&p)[N][4], const bf16* tile) {
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t a[4] = {pack(p[k][0], p[k][1]), pack(p[k][2], p[k][3]), pack(p[k + 1][0], p[k + 1][1]),
                         pack(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            load_b<D>(b, tile, k * 8, n * 8);
            multiply_two(o[n], o[n + 1], a, b);
        }
    }
}

// The first of the two rows of which a thread has values in its fragments; the other is 8 rows on.
DEVICE int own_row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }

// Their first column; the next is 1 on.
DEVICE int own_column() { return threadIdx.x % 4 * 2; }

// The keys that one of the two rows, of a tile of queries, sees.
DEVICE Range own_keys(const Attention& shape, Tile tile, int half) {
    tile.first += own_row() + half * 8;
    return keys_of(shape, tile, 1);
}

// The queries that see one of the two rows, of a tile of keys.
DEVICE Range own_queries(const Attention& shape, Tile tile, int half) {
    tile.first += own_row() + half * 8;
    return queries_of(shape, tile, 1);
}

template <int D>
DEVICE void store_rows(bf16* to, const float (&o)[D / 8][4], const float (&scale)[2], int stride, int rows, int dim) {
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = own_row() + half * 8, column = j * 8 + own_column();
            if (row >= rows || column >= dim) continue;
            uint32_t pair = pack(o[j][half * 2] * scale[half], o[j][half * 2 + 1] * scale[half]);
            *(uint32_t*)(to + (size_t)row * stride + column) = pair;
        }
    }
}

#include "attention_forward.cuh"
#include "attention_backward.cuh"

#define ATTENTION_ENTRIES(D)                                                                                          \
    ATTENTION_KERNEL attention_forward_##D(const bf16* q, const bf16* k, const bf16* v, const int* tiles, bf16* out,  \
                                           float* lse, Attention shape) {                                             \
        attention_forward<D>(q, k, v, tiles, out, lse, shape);                                                        \
    }                                                                                                                 \
    ATTENTION_KERNEL attention_dq_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out,                 \
                                      const float* lse, const float* delta, const int* tiles, bf16* dq,               \
                                      Attention shape) {                                                              \
        attention_dq<D>(q, k, v, d_out, lse, delta, tiles, dq, shape);                                                \
    }                                                                                                                 \
    ATTENTION_KERNEL attention_dkv_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out,                \
                                       const float* lse, const float* delta, const int* tiles, bf16* dk, bf16* dv,    \
                                       Attention shape) {                                                             \
        attention_dkv<D>(q, k, v, d_out, lse, delta, tiles, dk, dv, shape);                                           \
    }

ATTENTION_ENTRIES(32)
ATTENTION_ENTRIES(64)
ATTENTION_ENTRIES(80)
ATTENTION_ENTRIES(96)
ATTENTION_ENTRIES(128)
