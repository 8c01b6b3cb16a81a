// The forward pass of attention, by tensor cores: a tile of queries, over the keys, with a running maximum and sum.
#pragma once

// What is known of a thread's two rows after some of the keys.
struct Softmax {
    float largest[2], total[2];
};

// Turns scores into numerators of probabilities relative to the largest score so far, for one of the thread's rows. `o`
// shrinks where that has grown. A row that sees none of these keys gets numerators of 1; they vanish as soon as it sees
// one, since it then shrinks by exp2(HIDDEN - score) = 0. Every row of the sequence sees itself.
template <int D>
DEVICE void softmax_step(Softmax& state, float (&s)[8][4], float (&o)[D / 8][4], int half, int key, Range visible,
                         float factor) {
    float most = state.largest[half];
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float& score = s[j][half * 2 + i];
            score = inside(visible, key + j * 8 + own_column() + i) ? score * factor : HIDDEN;
            most = larger(most, score);
        }
    }
    most = quad_max(most);
    float shrink = exp2_fast(state.largest[half] - most), sum = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float& p = s[j][half * 2 + i];
            p = exp2_fast(p - most);
            sum += p;
        }
    }
    state.total[half] = state.total[half] * shrink + quad_sum(sum);
    state.largest[half] = most;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        o[j][half * 2] *= shrink;
        o[j][half * 2 + 1] *= shrink;
    }
}

template <int D>
DEVICE void attention_forward(const bf16* q, const bf16* k, const bf16* v, const int* tiles, bf16* out, float* lse,
                              const Attention& shape) {
    bf16 *qs = (bf16*)shared_memory(), *ks = qs + Shared<D>::VALUES, *vs = ks + Shared<D>::VALUES;
    Tile tile = own_tile(tiles);
    Range keys = keys_of(shape, tile, TILE);
    int head = blockIdx.y, own = threadIdx.x / 32 * 16;
    int kv_stride = shape.kv_stride, kv_head = head / shape.group * shape.dim;
    size_t q_place = (size_t)tile.first * shape.q_stride + head * shape.dim;
    load_tile<D>(qs, q + q_place, shape.q_stride, tile.end - tile.first, shape.dim);
    copy_commit();
    float o[D / 8][4] = {};
    Range visible[2] = {own_keys(shape, tile, 0), own_keys(shape, tile, 1)};
    Softmax state = {{HIDDEN, HIDDEN}, {0, 0}};
    for (int key = keys.from; key < keys.to; key += TILE) {
        // All warps are done with the tiles before.
        __syncthreads();
        size_t place = (size_t)key * kv_stride + kv_head;
        load_tile<D>(ks, k + place, kv_stride, tile.end - key, shape.dim);
        copy_commit();
        load_tile<D>(vs, v + place, kv_stride, tile.end - key, shape.dim);
        copy_commit();
        // The values may still be on their way.
        copy_wait<1>();
        __syncthreads();
        float s[8][4];
        times_transposed<D, 8>(s, qs, own, ks);
        softmax_step<D>(state, s, o, 0, key, visible[0], shape.scale * LOG2_E);
        softmax_step<D>(state, s, o, 1, key, visible[1], shape.scale * LOG2_E);
        copy_wait<0>();
        __syncthreads();
        add_times<D, 8>(o, s, vs);
    }
    float inverse[2] = {1 / state.total[0], 1 / state.total[1]};
    store_rows<D>(out + q_place, o, inverse, shape.q_stride, tile.end - tile.first, shape.dim);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = tile.first + own_row() + half * 8;
        if (threadIdx.x % 4 != 0 || row >= tile.end) continue;
        lse[(size_t)row * shape.heads + head] = state.largest[half] + log2f(state.total[half]);
    }
}
