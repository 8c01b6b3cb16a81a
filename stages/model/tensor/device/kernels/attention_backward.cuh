// The backward pass of attention, by tensor cores. With p the probabilities, g = d_out v^T and delta the sum of
// out * d_out over a row: ds = p * (g - delta), dq = scale * ds k, dk = scale * ds^T q, dv = p^T d_out.
#pragma once

// Rows of a tile that are multiplied at once: with all 64, the sums would not fit into registers.
#define PART 32

// A tile of queries, over the keys.
template <int D>
DEVICE void attention_dq(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse,
                         const float* delta, const int* tiles, bf16* dq, const Attention& shape) {
    bf16 *qs = (bf16*)shared_memory(), *gs = qs + Shared<D>::VALUES;
    bf16 *ks = gs + Shared<D>::VALUES, *vs = ks + Shared<D>::VALUES;
    Tile tile = own_tile(tiles);
    Range keys = keys_of(shape, tile, TILE);
    int head = blockIdx.y, own = threadIdx.x / 32 * 16, rows = tile.end - tile.first;
    int kv_stride = shape.kv_stride, kv_head = head / shape.group * shape.dim;
    float factor = shape.scale * LOG2_E;
    size_t q_place = (size_t)tile.first * shape.q_stride + head * shape.dim;
    load_tile<D>(qs, q + q_place, shape.q_stride, rows, shape.dim);
    load_tile<D>(gs, d_out + q_place, shape.q_stride, rows, shape.dim);
    Range visible[2] = {own_keys(shape, tile, 0), own_keys(shape, tile, 1)};
    float sum[D / 8][4] = {}, own_lse[2], own_delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = own_row() + half * 8;
        size_t at = (size_t)(tile.first + row) * shape.heads + head;
        own_lse[half] = row < rows ? lse[at] : 0;
        own_delta[half] = row < rows ? delta[at] : 0;
    }
    for (int key = keys.from; key < keys.to; key += TILE) {
        __syncthreads();
        size_t place = (size_t)key * kv_stride + kv_head;
        load_tile<D>(ks, k + place, kv_stride, tile.end - key, shape.dim);
        load_tile<D>(vs, v + place, kv_stride, tile.end - key, shape.dim);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
#pragma unroll 1
        for (int part = 0; part < TILE; part += PART) {
            float s[PART / 8][4], g[PART / 8][4];
            times_transposed<D, PART / 8>(s, qs, own, ks + part * Shared<D>::STRIDE);
            times_transposed<D, PART / 8>(g, gs, own, vs + part * Shared<D>::STRIDE);
#pragma unroll
            for (int j = 0; j < PART / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = key + part + j * 8 + own_column() + i % 2;
                    float p = exp2_fast(s[j][i] * factor - own_lse[i / 2]) * (g[j][i] - own_delta[i / 2]);
                    s[j][i] = inside(visible[i / 2], column) ? p : 0;
                }
            }
            add_times<D, PART / 8>(sum, s, ks + part * Shared<D>::STRIDE);
        }
    }
    float scale[2] = {shape.scale, shape.scale};
    store_rows<D>(dq + q_place, sum, scale, shape.q_stride, rows, shape.dim);
}

// Loads a tile of queries and what belongs to its rows.
template <int D>
DEVICE void load_queries(bf16* qs, const bf16* q, const bf16* d_out, const float* lse, const float* delta, int query,
                         int end, int head, const Attention& shape) {
    bf16* gs = qs + Shared<D>::VALUES;
    float *ls = (float*)(gs + Shared<D>::VALUES), *ds = ls + TILE;
    size_t place = (size_t)query * shape.q_stride + head * shape.dim;
    load_tile<D>(qs, q + place, shape.q_stride, end - query, shape.dim);
    load_tile<D>(gs, d_out + place, shape.q_stride, end - query, shape.dim);
    for (int i = threadIdx.x; i < TILE; i += blockDim.x) {
        size_t at = (size_t)(query + i) * shape.heads + head;
        ls[i] = query + i < end ? lse[at] : 0;
        ds[i] = query + i < end ? delta[at] : 0;
    }
    copy_commit();
}

// A tile of keys, over the queries that see it, of all heads that share the key head, in order.
template <int D>
DEVICE void attention_dkv(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse,
                          const float* delta, const int* tiles, bf16* dk, bf16* dv, const Attention& shape) {
    bf16 *ks = (bf16*)shared_memory(), *vs = ks + Shared<D>::VALUES;
    bf16 *qs = vs + Shared<D>::VALUES, *gs = qs + Shared<D>::VALUES;
    const float *ls = (const float*)(gs + Shared<D>::VALUES), *ds = ls + TILE;
    Tile tile = own_tile(tiles);
    Range queries = queries_of(shape, tile, TILE);
    int kv = blockIdx.y, own = threadIdx.x / 32 * 16, rows = tile.end - tile.first;
    float factor = shape.scale * LOG2_E;
    size_t kv_place = (size_t)tile.first * shape.kv_stride + kv * shape.dim;
    load_tile<D>(ks, k + kv_place, shape.kv_stride, rows, shape.dim);
    load_tile<D>(vs, v + kv_place, shape.kv_stride, rows, shape.dim);
    Range visible[2] = {own_queries(shape, tile, 0), own_queries(shape, tile, 1)};
    float sum_k[D / 8][4] = {}, sum_v[D / 8][4] = {};
    for (int head = kv * shape.group; head < (kv + 1) * shape.group; head++) {
        for (int query = queries.from; query < queries.to; query += TILE) {
            __syncthreads();
            load_queries<D>(qs, q, d_out, lse, delta, query, tile.end, head, shape);
            copy_wait<0>();
            __syncthreads();
#pragma unroll 1
            for (int part = 0; part < TILE; part += PART) {
                float s[PART / 8][4], g[PART / 8][4];
                times_transposed<D, PART / 8>(s, ks, own, qs + part * Shared<D>::STRIDE);
                times_transposed<D, PART / 8>(g, vs, own, gs + part * Shared<D>::STRIDE);
#pragma unroll
                for (int j = 0; j < PART / 8; j++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int at = part + j * 8 + own_column() + i % 2;
                        float p = exp2_fast(s[j][i] * factor - ls[at]);
                        s[j][i] = inside(visible[i / 2], query + at) ? p : 0;
                        g[j][i] = s[j][i] * (g[j][i] - ds[at]);
                    }
                }
                add_times<D, PART / 8>(sum_v, s, gs + part * Shared<D>::STRIDE);
                add_times<D, PART / 8>(sum_k, g, qs + part * Shared<D>::STRIDE);
            }
        }
    }
    float scale[2] = {shape.scale, shape.scale}, one[2] = {1, 1};
    store_rows<D>(dk + kv_place, sum_k, scale, shape.kv_stride, rows, shape.dim);
    store_rows<D>(dv + kv_place, sum_v, one, shape.kv_stride, rows, shape.dim);
}
