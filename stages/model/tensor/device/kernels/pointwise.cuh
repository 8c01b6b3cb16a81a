// Elementwise kernels, and those that go through rows without looking across them.

KERNEL TYPED(activation)(int kind, const Value* x, Value* y, long long n) {
    long long i = element();
    if (i < n) store(y, i, activate(kind, load(x, i)));
}

KERNEL TYPED(activation_gradient)(int kind, const Value* x, const Value* dy, Value* dx, long long n, int add) {
    long long i = element();
    if (i < n) put(dx, i, load(dy, i) * activate_derivative(kind, load(x, i)), add);
}

KERNEL TYPED(silu_gate)(const Value* gate, const Value* up, Value* y, long long n) {
    long long i = element();
    if (i < n) store(y, i, activate(SILU, load(gate, i)) * load(up, i));
}

KERNEL TYPED(silu_gate_gradient)(const Value* gate, const Value* up, const Value* dy, Value* d_gate, long long n,
                                 int add) {
    long long i = element();
    if (i < n) put(d_gate, i, load(dy, i) * load(up, i) * activate_derivative(SILU, load(gate, i)), add);
}

KERNEL TYPED(silu_up_gradient)(const Value* gate, const Value* dy, Value* d_up, long long n, int add) {
    long long i = element();
    if (i < n) put(d_up, i, load(dy, i) * activate(SILU, load(gate, i)), add);
}

KERNEL TYPED(accumulate)(Value* to, const Value* from, float scale, long long n) {
    long long i = element();
    if (i < n) store(to, i, load(to, i) + scale * load(from, i));
}

// With a factor that lies on the device.
KERNEL TYPED(accumulate_by)(Value* to, const Value* from, const float* scale, long long n, int add) {
    long long i = element();
    if (i < n) put(to, i, scale[0] * load(from, i), add);
}

// Adds the same `period` values to every run of that many.
KERNEL TYPED(add_rows)(Value* y, const float* rows, long long n, long long period) {
    long long i = element();
    if (i < n) store(y, i, load(y, i) + rows[i % period]);
}

KERNEL TYPED(add_rows_gradient)(const Value* dy, float* d_rows, long long n, long long period, int add) {
    long long i = element();
    if (i >= period) return;
    float sum = 0;
    for (long long at = i; at < n; at += period) sum += load(dy, at);
    put(d_rows, i, sum, add);
}

// Multiplies column `i` of rows of `width` values by `scale[i]`.
KERNEL TYPED(scale_columns)(const Value* x, const float* scale, Value* y, long long n, long long width, int add) {
    long long i = element();
    if (i < n) put(y, i, load(x, i) * scale[i % width], add);
}

KERNEL TYPED(scale_columns_gradient)(const Value* x, const Value* dy, float* d_scale, long long n, long long width,
                                     int add) {
    long long i = element();
    if (i >= width) return;
    float sum = 0;
    for (long long at = i; at < n; at += width) sum += load(x, at) * load(dy, at);
    put(d_scale, i, sum, add);
}

KERNEL TYPED(dropout)(const Value* x, Value* y, const unsigned long long* keys, int width, unsigned threshold,
                      float scale, int add) {
    size_t base = (size_t)blockIdx.x * width;
    unsigned long long key = keys[blockIdx.x];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        bool kept = random_of(i, (unsigned)key, (unsigned)(key >> 32)) >= threshold;
        put(y, base + i, kept ? load(x, base + i) * scale : 0.0f, add);
    }
}

// What dropout takes away, x - dropout(x).
KERNEL TYPED(dropout_rest)(const Value* x, Value* y, const unsigned long long* keys, int width, unsigned threshold,
                           float scale, int add) {
    size_t base = (size_t)blockIdx.x * width;
    unsigned long long key = keys[blockIdx.x];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        bool kept = random_of(i, (unsigned)key, (unsigned)(key >> 32)) >= threshold;
        put(y, base + i, kept ? load(x, base + i) * scale : load(x, base + i), add);
    }
}

// Multiplies each column by what DoRA's magnitude is of the norm; also for its gradient.
KERNEL TYPED(set_norms)(const Value* x, const float* magnitudes, const float* norms, Value* y, long long n,
                        long long width, int add) {
    long long i = element();
    if (i < n) put(y, i, load(x, i) * (magnitudes[i % width] / norms[i % width]), add);
}

KERNEL TYPED(magnitude_gradient)(const Value* dy, const Value* x, const float* norms, float* d_magnitudes, long long n,
                                 long long width, int add) {
    long long i = element();
    if (i >= width) return;
    float sum = 0;
    for (long long at = i; at < n; at += width) sum += load(dy, at) * load(x, at);
    put(d_magnitudes, i, sum / norms[i], add);
}

// Rotates dimensions `i` and `i + half` of every head in place. `table` has cosine and sine of each row's angles.
KERNEL TYPED(rotate)(Value* x, const float* table, int width, int head_dim, int half, float direction) {
    if (half == 0) return;
    Value* row = x + (size_t)blockIdx.x * width;
    const float* angles = table + (size_t)blockIdx.x * half * 2;
    int pairs = width / head_dim * half;
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
        int low = i / half * head_dim + i % half, high = low + half;
        float cosine = angles[i % half * 2], sine = angles[i % half * 2 + 1] * direction;
        float a = load(row, low), b = load(row, high);
        store(row, low, a * cosine - b * sine);
        store(row, high, b * cosine + a * sine);
    }
}

// The columns `start..start + width` of rows of `whole` values.
KERNEL TYPED(columns)(const Value* x, Value* y, int whole, int start, int width) {
    const Value* from = x + (size_t)blockIdx.x * whole + start;
    Value* to = y + (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

KERNEL TYPED(columns_gradient)(const Value* dy, Value* dx, int whole, int start, int width, int add) {
    const Value* from = dy + (size_t)blockIdx.x * width;
    Value* to = dx + (size_t)blockIdx.x * whole;
    for (int i = threadIdx.x; i < whole; i += blockDim.x) {
        bool inside = i >= start && i < start + width;
        put(to, i, inside ? load(from, i - start) : 0.0f, add);
    }
}

// Rows of MLC's q4f16_1 (encoding/q4f16.rs): eight levels in a word, the first in the lowest bits; a scale for each 32.
KERNEL TYPED(widen_q4)(const unsigned* levels, const unsigned short* scales, Value* y, int cols, int words_per_row,
                       int scales_per_row) {
    const unsigned* words = levels + (size_t)blockIdx.x * words_per_row;
    const unsigned short* own_scales = scales + (size_t)blockIdx.x * scales_per_row;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        int level = words[i / 8] >> i % 8 * 4 & 15;
        store(y, (size_t)blockIdx.x * cols + i, (level - 7) * widen_f16(own_scales[i / 32]));
    }
}
