// Kernels with one entry, and the functions that the entries of both types share.
#pragma once

#define GELU_TANH 0
#define GELU_ERF 1
#define SILU 2
#define QUICK_GELU 3

DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// The argument of the tanh in GELU's approximation.
DEVICE float gelu_inner(float x) { return 0.7978845608f * (x + 0.044715f * x * x * x); }

DEVICE float activate(int kind, float x) {
    if (kind == GELU_TANH) return 0.5f * x * (1 + tanhf(gelu_inner(x)));
    if (kind == GELU_ERF) return 0.5f * x * (1 + erff(x * 0.7071067812f));
    if (kind == QUICK_GELU) return x * sigmoid(1.702f * x);
    return x * sigmoid(x);
}

DEVICE float activate_derivative(int kind, float x) {
    if (kind == GELU_TANH) {
        float t = tanhf(gelu_inner(x));
        return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
    }
    if (kind == GELU_ERF) return 0.5f * (1 + erff(x * 0.7071067812f)) + x * expf(-0.5f * x * x) * 0.3989422804f;
    float steepness = kind == QUICK_GELU ? 1.702f : 1;
    float s = sigmoid(steepness * x);
    return s * (1 + steepness * x * (1 - s));
}

// The stateless random number of host/dropout.rs: the same mask on every device.
DEVICE unsigned random_of(unsigned column, unsigned first, unsigned second) {
    unsigned x = column * 0x9e3779b9u ^ first;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15 ^ second) * 0x846ca68bu;
    return x ^ x >> 16;
}

// out[i] = sum over parts, in order.
KERNEL sum_parts(const float* partial, long long stride, float* out, int parts, int count, int add) {
    long long i = element();
    if (i >= count) return;
    float sum = 0;
    for (int part = 0; part < parts; part++) sum += partial[part * stride + i];
    put(out, i, sum, add);
}

// The norms of the rows of W + scale B A, for DoRA: host/dora.rs has the formula.
KERNEL row_norms(const float* squares, const float* b, const float* wa, const float* ba, float* norms, float scale,
                 int rank, long long n) {
    long long i = element();
    if (i >= n) return;
    float sum = 0;
    for (int r = 0; r < rank; r++) sum += b[i * rank + r] * (2 * wa[r * n + i] + scale * ba[i * rank + r]);
    // A row of zeros must not be divided by its norm.
    norms[i] = sqrtf(larger(squares[i] + scale * sum, 1e-30f));
}

KERNEL to_bf16(const float* x, bf16* y, long long n) {
    long long i = element();
    if (i < n) y[i] = narrow(x[i]);
}

KERNEL to_f32(const bf16* x, float* y, long long n) {
    long long i = element();
    if (i < n) y[i] = widen(x[i]);
}

KERNEL fill_zero(unsigned* to, long long n) {
    long long i = element();
    if (i < n) to[i] = 0;
}

// A matrix from which rows are taken. Type 0 is f32, 1 is bf16.
struct Source {
    const void* data;
    int type;
    int pad;
};

// Adds to row rows[b] of `to`, in order, the rows list[starts[b]..starts[b + 1]] of `dy`, for block b. One rounding.
template <class From, class To>
DEVICE void add_gathered(const From* dy, To* to, const int* rows, const int* starts, const int* list, int width) {
    size_t base = (size_t)rows[blockIdx.x] * width;
    int first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = load(to, base + i);
        for (int at = first; at < end; at++) sum += load(dy, (size_t)list[at] * width + i);
        store(to, base + i, sum);
    }
}

KERNEL gather_gradient_bf16_f32(const bf16* dy, float* to, const int* rows, const int* starts, const int* list,
                                int width) {
    add_gathered(dy, to, rows, starts, list, width);
}

// Per row: the log of the softmax's denominator, and the loss.
KERNEL cross_entropy(const float* logits, const unsigned* targets, float* losses, float* log_totals, int width) {
    const float* row = logits + (size_t)blockIdx.x * width;
    float largest = -3.4e38f, total = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) largest = larger(largest, row[i]);
    largest = block_max(largest);
    for (int i = threadIdx.x; i < width; i += blockDim.x) total += expf(row[i] - largest);
    total = block_sum(total);
    if (threadIdx.x != 0) return;
    float log_total = largest + logf(total);
    log_totals[blockIdx.x] = log_total;
    losses[blockIdx.x] = log_total - row[targets[blockIdx.x]];
}

// One block.
KERNEL sum_values(const float* x, float* out, int n, float scale) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum_f64(sum);
    if (threadIdx.x == 0) out[0] = (float)(scale * sum);
}
