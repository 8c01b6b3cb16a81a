// The gradient of the cross-entropy; the loss itself is in single.cuh, since logits are always in f32.

// `dy` is the gradient of the loss, on the device.
KERNEL TYPED(cross_entropy_gradient)(const float* logits, const unsigned* targets, const float* log_totals,
                                     const float* dy, float scale, Value* dx, int width, int add) {
    size_t base = (size_t)blockIdx.x * width;
    float factor = dy[0] * scale, log_total = log_totals[blockIdx.x];
    int target = targets[blockIdx.x];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float probability = expf(logits[base + i] - log_total);
        put(dx, base + i, factor * (i == target ? probability - 1 : probability), add);
    }
}
