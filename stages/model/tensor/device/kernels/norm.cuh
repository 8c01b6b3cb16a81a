// Layer norm and RMS norm, a row per block. `stats` has each row's mean (0 for RMS norm) and 1 / sqrt(variance + epsilon).

KERNEL TYPED(layer_norm)(const Value* x, const float* w, const float* b, Value* y, float* stats, int width,
                         float epsilon) {
    size_t base = (size_t)blockIdx.x * width;
    float sum = 0, squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += load(x, base + i);
    float mean = block_sum(sum) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float centered = load(x, base + i) - mean;
        squares += centered * centered;
    }
    float inverse = rsqrtf(block_sum(squares) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        store(y, base + i, (load(x, base + i) - mean) * inverse * w[i] + b[i]);
    }
    if (threadIdx.x == 0) {
        stats[(size_t)blockIdx.x * 2] = mean;
        stats[(size_t)blockIdx.x * 2 + 1] = inverse;
    }
}

KERNEL TYPED(rms_norm)(const Value* x, const float* w, Value* y, float* stats, int width, float epsilon) {
    size_t base = (size_t)blockIdx.x * width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += load(x, base + i) * load(x, base + i);
    float inverse = rsqrtf(block_sum(squares) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) store(y, base + i, load(x, base + i) * inverse * w[i]);
    if (threadIdx.x == 0) {
        stats[(size_t)blockIdx.x * 2] = 0;
        stats[(size_t)blockIdx.x * 2 + 1] = inverse;
    }
}

KERNEL TYPED(layer_norm_gradient)(const Value* x, const float* w, const float* stats, const Value* dy, Value* dx,
                                  int width, int add) {
    size_t base = (size_t)blockIdx.x * width;
    float mean = stats[(size_t)blockIdx.x * 2], inverse = stats[(size_t)blockIdx.x * 2 + 1];
    float along = 0, across = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float d = load(dy, base + i) * w[i];
        along += d;
        across += d * (load(x, base + i) - mean);
    }
    along = block_sum(along) / width;
    across = block_sum(across) * inverse * inverse / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float d = load(dy, base + i) * w[i] - along - (load(x, base + i) - mean) * across;
        put(dx, base + i, inverse * d, add);
    }
}

KERNEL TYPED(rms_norm_gradient)(const Value* x, const float* w, const float* stats, const Value* dy, Value* dx,
                                int width, int add) {
    size_t base = (size_t)blockIdx.x * width;
    float inverse = stats[(size_t)blockIdx.x * 2 + 1], across = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) across += load(dy, base + i) * w[i] * load(x, base + i);
    across = block_sum(across) * inverse * inverse / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        put(dx, base + i, inverse * (load(dy, base + i) * w[i] - load(x, base + i) * across), add);
    }
}

// The gradients of weight and bias over the rows of a part (blockIdx.y), a thread per column; `sum_parts` joins them.
KERNEL TYPED(norm_weight_gradient)(const Value* x, const float* stats, const Value* dy, float* partial, int rows,
                                   int width, int rows_per_part) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.y * rows_per_part, end = first + rows_per_part < rows ? first + rows_per_part : rows;
    float dw = 0, db = 0;
    for (int row = first; row < end; row++) {
        size_t at = (size_t)row * width + column;
        float d = load(dy, at), mean = stats[(size_t)row * 2], inverse = stats[(size_t)row * 2 + 1];
        dw += d * (load(x, at) - mean) * inverse;
        db += d;
    }
    float* part = partial + (size_t)blockIdx.y * 2 * width;
    part[column] = dw;
    part[width + column] = db;
}

// The sum of each column over the rows of a part: the gradient of a bias.
KERNEL TYPED(column_sums)(const Value* dy, float* partial, int rows, int width, int rows_per_part) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.y * rows_per_part, end = first + rows_per_part < rows ? first + rows_per_part : rows;
    float sum = 0;
    for (int row = first; row < end; row++) sum += load(dy, (size_t)row * width + column);
    partial[(size_t)blockIdx.y * width + column] = sum;
}
