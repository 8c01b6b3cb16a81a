// Attention by the lanes of a warp, for any type and any width up to 256. A lane has the dimensions `lane`, `lane + 32`
// and so on of a head. Keys are taken four at a time: one meeting of the warp for all their sums.
#pragma once

#define PARTS 8
#define STEP 4

struct Parts {
    float at[PARTS];
};

DEVICE Parts no_parts() {
    Parts none;
#pragma unroll
    for (int i = 0; i < PARTS; i++) none.at[i] = 0;
    return none;
}

// The lane's values of a row; zeros beyond its width.
template <class V> DEVICE Parts load_parts(const V* row, int dim) {
    Parts parts = no_parts();
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        int at = threadIdx.x % 32 + i * 32;
        SKIP_REST(i * 32 >= dim);
        if (at < dim) parts.at[i] = load(row, at);
    }
    return parts;
}

template <class V> DEVICE void store_parts(V* row, const Parts& parts, float scale, int dim) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        int at = threadIdx.x % 32 + i * 32;
        SKIP_REST(i * 32 >= dim);
        if (at < dim) store(row, at, parts.at[i] * scale);
    }
}

// The lane's share of the dot product with a row.
template <class V> DEVICE float dot_parts(const Parts& a, const V* row, int dim) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        int at = threadIdx.x % 32 + i * 32;
        SKIP_REST(i * 32 >= dim);
        if (at < dim) sum += a.at[i] * load(row, at);
    }
    return sum;
}

// Adds a row, times a factor, to the lane's sums.
template <class V> DEVICE void add_parts(Parts& to, const V* row, float factor, int dim) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        int at = threadIdx.x % 32 + i * 32;
        SKIP_REST(i * 32 >= dim);
        if (at < dim) to.at[i] += load(row, at) * factor;
    }
}

// The softmax over the keys so far, as numerators relative to the largest score, and the sum of values by them.
struct Online {
    float largest, total;
    Parts out;
};

DEVICE Online no_keys() {
    Online none = {HIDDEN, 0, no_parts()};
    return none;
}

// Keys and values of one head, from the first row on. Rows are `stride` values apart.
template <class V> struct Rows {
    const V* keys;
    const V* values;
    size_t stride;
    int dim;
};

// Adds `STEP` keys with their values, of which the first `count` are real.
template <class V>
DEVICE void online_step(Online& state, const Parts& query, const Rows<V>& of, int key, int count, float factor) {
    float scores[STEP];
#pragma unroll
    for (int j = 0; j < STEP; j++) {
        size_t row = key + (j < count ? j : 0);
        scores[j] = dot_parts(query, of.keys + row * of.stride, of.dim) * factor;
    }
    warp_sums(scores);
    float most = state.largest;
#pragma unroll
    for (int j = 0; j < STEP; j++) most = j < count ? larger(most, scores[j]) : most;
    float shrink = exp2_fast(state.largest - most);
    state.largest = most;
    state.total *= shrink;
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        SKIP_REST(i * 32 >= of.dim);
        state.out.at[i] *= shrink;
    }
#pragma unroll
    for (int j = 0; j < STEP; j++) {
        if (j >= count) continue;
        float p = exp2_fast(scores[j] - most);
        state.total += p;
        add_parts(state.out, of.values + (size_t)(key + j) * of.stride, p, of.dim);
    }
}

// The keys from `first`, `STEP` of every `advance`. `factor` makes scores of products, in base 2.
template <class V>
DEVICE void online_steps(Online& state, const Parts& query, const Rows<V>& of, int first, int end, int advance,
                         float factor) {
    for (int key = first; key < end; key += advance) {
        online_step(state, query, of, key, smaller(end - key, STEP), factor);
    }
}

// The sequence of a row.
DEVICE Tile own_span(const int* spans, int row) {
    Tile span = {spans[(size_t)row * 2], row, spans[(size_t)row * 2 + 1]};
    return span;
}

// A warp's number in the grid.
DEVICE long long own_warp() { return element() / 32; }

// The keys and values to which a row attends: two pieces, the first first, each [count, kv_width].
struct Cached {
    const void* keys[2];
    const void* values[2];
    int counts[2];
};

// Joins the states of a block's four warps, in order, and stores the output.
template <class V> DEVICE void join_online(const Online& state, V* out, int dim) {
    const int STRIDE = 32 * PARTS + 2;
    float* all = (float*)block_scratch<4 * STRIDE * 4>();
    float* own = all + threadIdx.x / 32 * STRIDE;
    store_parts(own + 2, state.out, 1, dim);
    if (threadIdx.x % 32 == 0) {
        own[0] = state.largest;
        own[1] = state.total;
    }
    __syncthreads();
    float most = HIDDEN, total = 0, shrink[4];
    for (int warp = 0; warp < 4; warp++) most = larger(most, all[warp * STRIDE]);
    for (int warp = 0; warp < 4; warp++) {
        shrink[warp] = exp2_fast(all[warp * STRIDE] - most);
        total += all[warp * STRIDE + 1] * shrink[warp];
    }
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0;
        for (int warp = 0; warp < 4; warp++) sum += all[warp * STRIDE + 2 + i] * shrink[warp];
        store(out, i, sum / total);
    }
}
