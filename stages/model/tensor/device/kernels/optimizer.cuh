// AdamW over all parameters at once, and the norm of all gradients.
#pragma once

// A parameter, its two moments, its gradient. `decay`: 1 - rate * weight decay. `step_size`: rate / (1 - beta1^step).
struct Update {
    float* w;
    float* m;
    float* v;
    const float* g;
    long long n;
    float decay, step_size;
};

// `scale`: factor on gradients, for clipping. `new1`: 1 - beta1. `new2`: 1 - beta2. `root`: sqrt(1 - beta2^step).
struct Common {
    float scale, new1, beta2, new2, root, epsilon;
};

// Values of one parameter per block of threads.
#define VALUES_PER_BLOCK 4096

// blocks[i]: the update to which block i belongs, and which block of it.
KERNEL adamw(const Update* updates, const int* blocks, Common by) {
    Update of = updates[blocks[(size_t)blockIdx.x * 2]];
    long long first = (long long)blocks[(size_t)blockIdx.x * 2 + 1] * VALUES_PER_BLOCK;
    long long end = first + VALUES_PER_BLOCK < of.n ? first + VALUES_PER_BLOCK : of.n;
    for (long long i = first + threadIdx.x; i < end; i += blockDim.x) {
        float g = of.g[i] * by.scale;
        float m = of.m[i] + (g - of.m[i]) * by.new1;
        float v = of.v[i] * by.beta2 + g * g * by.new2;
        of.m[i] = m;
        of.v[i] = v;
        of.w[i] = of.w[i] * of.decay - of.step_size * m / (sqrtf(v) / by.root + by.epsilon);
    }
}

KERNEL sum_of_squares(const Update* updates, const int* blocks, double* partial) {
    const Update& of = updates[blocks[(size_t)blockIdx.x * 2]];
    long long first = (long long)blocks[(size_t)blockIdx.x * 2 + 1] * VALUES_PER_BLOCK;
    long long end = first + VALUES_PER_BLOCK < of.n ? first + VALUES_PER_BLOCK : of.n;
    double sum = 0;
    for (long long i = first + threadIdx.x; i < end; i += blockDim.x) sum += (double)of.g[i] * of.g[i];
    sum = block_sum_f64(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
