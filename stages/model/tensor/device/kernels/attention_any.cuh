// Attention for f32 and for widths that tensor cores do not take; and attention to a cache, for generation. A warp per
// row and head: see lanes.cuh. The formulas are those of attention.cuh.

ATTENTION_KERNEL TYPED(attention_any)(const Value* q, const Value* k, const Value* v, const int* spans, Value* out,
                                      float* lse, int rows, Attention shape) {
    long long pair = own_warp();
    if (pair >= (long long)rows * shape.heads) return;
    int row = pair / shape.heads, head = pair % shape.heads, dim = shape.dim;
    Range keys = keys_of(shape, own_span(spans, row), 1);
    size_t q_place = (size_t)row * shape.q_stride + head * dim;
    Parts query = load_parts(q + q_place, dim);
    int column = head / shape.group * dim;
    Rows<Value> of = {k + column, v + column, (size_t)shape.kv_stride, dim};
    Online state = no_keys();
    online_steps(state, query, of, keys.from, keys.to, STEP, shape.scale * LOG2_E);
    store_parts(out + q_place, state.out, 1 / state.total, dim);
    if (threadIdx.x % 32 == 0) lse[(size_t)row * shape.heads + head] = state.largest + log2f(state.total);
}

// delta[row, head]: the sum of out * d_out over the head's width. A warp per row and head.
ATTENTION_KERNEL TYPED(attention_delta)(const Value* out, const Value* d_out, float* delta, int pairs, int dim) {
    long long pair = own_warp();
    if (pair >= pairs) return;
    float sum = 0;
    for (int i = threadIdx.x % 32; i < dim; i += 32) sum += load(out, pair * dim + i) * load(d_out, pair * dim + i);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[pair] = sum;
}

ATTENTION_KERNEL TYPED(attention_any_dq)(const Value* q, const Value* k, const Value* v, const Value* d_out,
                                         const float* lse, const float* delta, const int* spans, Value* dq, int rows,
                                         Attention shape) {
    long long pair = own_warp();
    if (pair >= (long long)rows * shape.heads) return;
    int row = pair / shape.heads, head = pair % shape.heads, dim = shape.dim;
    Range keys = keys_of(shape, own_span(spans, row), 1);
    size_t q_place = (size_t)row * shape.q_stride + head * dim;
    Parts query = load_parts(q + q_place, dim), gradient = load_parts(d_out + q_place, dim), sum = no_parts();
    float own_lse = lse[pair], own_delta = delta[pair];
    for (int key = keys.from; key < keys.to; key += STEP) {
        int count = smaller(keys.to - key, STEP);
        size_t place = (size_t)key * shape.kv_stride + head / shape.group * dim;
        // First the scores, then the gradients of the probabilities.
        float sums[2 * STEP];
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            size_t at = place + (size_t)(j < count ? j : 0) * shape.kv_stride;
            sums[j] = dot_parts(query, k + at, dim);
            sums[STEP + j] = dot_parts(gradient, v + at, dim);
        }
        warp_sums(sums);
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            if (j >= count) continue;
            float p = exp2_fast(sums[j] * (shape.scale * LOG2_E) - own_lse);
            add_parts(sum, k + place + (size_t)j * shape.kv_stride, p * (sums[STEP + j] - own_delta), dim);
        }
    }
    store_parts(dq + q_place, sum, shape.scale, dim);
}

// A warp per row and key head.
ATTENTION_KERNEL TYPED(attention_any_dkv)(const Value* q, const Value* k, const Value* v, const Value* d_out,
                                          const float* lse, const float* delta, const int* spans, Value* dk, Value* dv,
                                          int rows, Attention shape) {
    long long pair = own_warp();
    int kv_heads = shape.heads / shape.group, dim = shape.dim;
    if (pair >= (long long)rows * kv_heads) return;
    int row = pair / kv_heads, kv = pair % kv_heads;
    Range queries = queries_of(shape, own_span(spans, row), 1);
    size_t kv_place = (size_t)row * shape.kv_stride + kv * dim;
    Parts key = load_parts(k + kv_place, dim), value = load_parts(v + kv_place, dim);
    Parts sum_k = no_parts(), sum_v = no_parts();
    for (int head = kv * shape.group; head < (kv + 1) * shape.group; head++) {
        for (int query = queries.from; query < queries.to; query += STEP) {
            int count = smaller(queries.to - query, STEP);
            size_t place = (size_t)query * shape.q_stride + head * dim;
            float sums[2 * STEP];
#pragma unroll
            for (int j = 0; j < STEP; j++) {
                size_t at = place + (size_t)(j < count ? j : 0) * shape.q_stride;
                sums[j] = dot_parts(key, q + at, dim);
                sums[STEP + j] = dot_parts(value, d_out + at, dim);
            }
            warp_sums(sums);
#pragma unroll
            for (int j = 0; j < STEP; j++) {
                if (j >= count) continue;
                size_t at = place + (size_t)j * shape.q_stride, of_row = (size_t)(query + j) * shape.heads + head;
                float p = exp2_fast(sums[j] * (shape.scale * LOG2_E) - lse[of_row]);
                add_parts(sum_v, d_out + at, p, dim);
                add_parts(sum_k, q + at, p * (sums[STEP + j] - delta[of_row]), dim);
            }
        }
    }
    store_parts(dk + kv_place, sum_k, shape.scale, dim);
    store_parts(dv + kv_place, sum_v, 1, dim);
}

// One row of queries per blockIdx.x, each with its own keys and values. The four warps of a block share the keys out.
ATTENTION_KERNEL TYPED(attention_cached)(const Value* q, const Cached* cached, Value* out, int heads, int group,
                                         int dim, int kv_width, float scale) {
    int head = blockIdx.y, column = head / group * dim;
    size_t place = ((size_t)blockIdx.x * heads + head) * dim;
    Parts query = load_parts(q + place, dim);
    Online state = no_keys();
#pragma unroll 1
    for (int piece = 0; piece < 2; piece++) {
        const Cached& cache = cached[blockIdx.x];
        Rows<Value> of = {(const Value*)cache.keys[piece] + column, (const Value*)cache.values[piece] + column,
                          (size_t)kv_width, dim};
        int first = threadIdx.x / 32 * STEP, advance = blockDim.x / 32 * STEP;
        online_steps(state, query, of, first, cache.counts[piece], advance, scale * LOG2_E);
    }
    join_online(state, out + place, dim);
}
