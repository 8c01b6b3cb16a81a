// Rows from several matrices, and the ordered sums of their gradients.

// Row i of `y` is row picks[i][1] of source picks[i][0].
KERNEL TYPED(gather)(const Source* sources, const int* picks, Value* y, int width) {
    Source source = sources[picks[(size_t)blockIdx.x * 2]];
    size_t from = (size_t)picks[(size_t)blockIdx.x * 2 + 1] * width, to = (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float value = source.type == 0 ? load((const float*)source.data, from + i) : load((const bf16*)source.data, from + i);
        store(y, to + i, value);
    }
}

// Copies row i of `from` to the address to[i]: new positions of a batch to their caches.
KERNEL TYPED(scatter_rows)(const Value* from, Value* const* to, int width) {
    Value* row = to[blockIdx.x];
    for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = from[(size_t)blockIdx.x * width + i];
}

KERNEL TYPED(gather_gradient)(const Value* dy, Value* to, const int* rows, const int* starts, const int* list,
                              int width) {
    add_gathered(dy, to, rows, starts, list, width);
}
