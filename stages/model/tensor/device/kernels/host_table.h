// The kernels by name, with parameters as cuLaunchKernel takes them: so the code that launches on a GPU runs as it is.
#pragma once
#include <utility>

namespace host {

template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), void** params, std::index_sequence<I...>) {
    kernel(*(std::remove_const_t<A>*)params[I]...);
}

template <class... A> inline void call(void (*kernel)(A...), void** params) {
    call_with(kernel, params, std::index_sequence_for<A...>());
}

struct Entry {
    const char* name;
    // No thread waits for another: no fibers are needed.
    bool plain;
    void (*run)(void**);
};

#define ENTRY(kernel, plain) {#kernel, plain, [](void** params) { call(kernel, params); }}
#define PLAIN(kernel) ENTRY(kernel, true)
#define PLAIN_BOTH(kernel) ENTRY(kernel##_f32, true), ENTRY(kernel##_bf16, true)
#define MEETS(kernel) ENTRY(kernel, false)
#define MEETS_BOTH(kernel) ENTRY(kernel##_f32, false), ENTRY(kernel##_bf16, false)
#define MEETS_WIDE(kernel) MEETS(kernel##_32), MEETS(kernel##_64), MEETS(kernel##_80), MEETS(kernel##_96), MEETS(kernel##_128)

static const Entry ENTRIES[] = {
    MEETS_BOTH(layer_norm), MEETS_BOTH(rms_norm), MEETS_BOTH(layer_norm_gradient), MEETS_BOTH(rms_norm_gradient),
    PLAIN_BOTH(norm_weight_gradient), PLAIN(sum_parts), PLAIN_BOTH(column_sums),
    PLAIN_BOTH(activation), PLAIN_BOTH(activation_gradient), PLAIN_BOTH(silu_gate), PLAIN_BOTH(silu_gate_gradient),
    PLAIN_BOTH(silu_up_gradient), PLAIN_BOTH(accumulate), PLAIN_BOTH(accumulate_by), PLAIN_BOTH(add_rows),
    PLAIN_BOTH(add_rows_gradient), PLAIN_BOTH(scale_columns), PLAIN_BOTH(scale_columns_gradient), PLAIN_BOTH(dropout),
    PLAIN_BOTH(dropout_rest), PLAIN_BOTH(set_norms), PLAIN_BOTH(magnitude_gradient), PLAIN(row_norms), PLAIN_BOTH(rotate),
    PLAIN(to_bf16), PLAIN(to_f32),
    PLAIN(fill_zero), PLAIN_BOTH(columns), PLAIN_BOTH(columns_gradient), PLAIN_BOTH(widen_q4),
    PLAIN_BOTH(gather), PLAIN_BOTH(scatter_rows), PLAIN_BOTH(gather_gradient), PLAIN(gather_gradient_bf16_f32),
    MEETS(cross_entropy), PLAIN_BOTH(cross_entropy_gradient), MEETS(sum_values),
    MEETS_WIDE(attention_forward), MEETS_WIDE(attention_dq), MEETS_WIDE(attention_dkv), MEETS_BOTH(attention_delta),
    MEETS_BOTH(attention_any), MEETS_BOTH(attention_any_dq), MEETS_BOTH(attention_any_dkv),
    MEETS_BOTH(attention_cached),
    PLAIN(adamw), MEETS(sum_of_squares),
};

inline const Entry* entry_of(const char* name) {
    for (const Entry& entry : ENTRIES) {
        if (!strcmp(entry.name, name)) return &entry;
    }
    return nullptr;
}

}  // namespace host

extern "C" int imp_emulated_has(const char* name) { return host::entry_of(name) != nullptr; }

extern "C" int imp_emulated_count() { return sizeof host::ENTRIES / sizeof host::ENTRIES[0]; }

// Returns null, or what went wrong.
extern "C" const char* imp_emulated_launch(const char* name, const unsigned* grid, unsigned threads, unsigned shared,
                                           unsigned order, void** params) {
    const host::Entry* entry = host::entry_of(name);
    if (!entry) return "there is no such kernel";
    return host::launch(dim3{grid[0], grid[1], grid[2]}, dim3{threads, 1, 1}, shared, order, entry->plain,
                        [&] { entry->run(params); });
}

// The bare operations of one warp, to test them against NVIDIA's own description: registers in, registers out.
extern "C" void imp_emulated_mma(const uint32_t* a, const uint32_t* b, float* c) {
    host::launch(dim3{1, 1, 1}, dim3{32, 1, 1}, 0, 0, false, [=] {
        int lane = threadIdx.x;
        uint32_t own_a[4], own_b[2];
        float own_c[4] = {};
        memcpy(own_a, a + lane * 4, sizeof own_a);
        memcpy(own_b, b + lane * 2, sizeof own_b);
        mma_16816(own_c, own_a, own_b);
        memcpy(c + lane * 4, own_c, sizeof own_c);
    });
}

extern "C" void imp_emulated_ldmatrix(int transposed, const bf16* rows, uint32_t* out) {
    host::launch(dim3{1, 1, 1}, dim3{32, 1, 1}, 0, 0, false, [=] {
        int lane = threadIdx.x;
        uint32_t own[4];
        if (transposed) ldmatrix_x4<true>(own, rows + lane * 8);
        else ldmatrix_x4<false>(own, rows + lane * 8);
        memcpy(out + lane * 4, own, sizeof own);
    });
}
