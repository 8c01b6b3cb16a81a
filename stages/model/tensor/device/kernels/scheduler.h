// Runs the blocks of a kernel on the CPU. What a warp does together is a meeting of its 32 lanes; __syncthreads is a
// meeting of the block. Between meetings the threads run one after the other, in an order that the test chooses: a kernel
// that lacks a barrier gives different results in different orders.
//
// Orders: 0 runs the first warp that can run, as far as it can, and copies by cp.async happen as late as they may;
// 1 runs the last one, lanes and blocks backwards, and copies at once; others choose warps by a random number.
#pragma once
#include <cstdio>
#include <cstring>
#include <functional>

#include "fibers.h"

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace host {

const int LANES = 32;
const int MOST_THREADS = 1024;
// As on a GPU: at most 227 KB per block.
const size_t MOST_SHARED = 227 << 10;
const size_t SCRATCH = 8 << 10;
// Bytes after the shared memory of a block that must stay as they are.
const size_t CANARY = 4 << 10;

// What a lane brings to a meeting of its warp, and what it takes away.
struct Slot {
    uint32_t in[8];
    uint32_t out[8];
    const void* address;
};
typedef void (*Together)(Slot* lanes);

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

struct Fiber {
    Context context;
    State state;
    Together together;
    std::vector<Copy> copies;
    // Where each committed group of `copies` ends.
    std::vector<size_t> groups;
};

struct World {
    Context scheduler;
    Stacks stacks;
    Fiber fibers[MOST_THREADS];
    Slot slots[MOST_THREADS];
    alignas(128) unsigned char shared[MOST_SHARED + CANARY];
    alignas(128) unsigned char scratch[SCRATCH];
    dim3 grid, block;
    unsigned order, random;
    bool eager;
    bool fibers_run;
    const char* failure;
    const std::function<void()>* body;
};

inline thread_local World* world = nullptr;
inline thread_local dim3 thread_index;
inline thread_local dim3 block_index;

inline Fiber& self() { return world->fibers[thread_index.x]; }

inline void wait(State state) {
    unsigned own = thread_index.x;
    world->fibers[own].state = state;
    switch_context(&world->fibers[own].context, &world->scheduler);
}

// Ends the launch with a message. A kernel that does not come back leaves its fibers where they are.
inline void fail(const char* what) {
    if (!world->failure) world->failure = what;
    if (world->fibers_run) wait(DONE);
    fprintf(stderr, "kernel on the CPU: %s\n", what);
    abort();
}

// The same from the scheduler, which looks at the failure by itself.
inline void fail_later(const char* what) {
    if (!world->failure) world->failure = what;
}

inline void sync_block() {
    if (!world->fibers_run) fail("a barrier in a kernel that is listed as having none");
    wait(AT_BLOCK);
}

// Meets the other lanes of the warp. `together` is run once, when all of them have come.
inline const Slot& meet(Together together, const Slot& mine) {
    if (!world->fibers_run) fail("a warp operation in a kernel that is listed as having none");
    unsigned own = thread_index.x;
    world->slots[own] = mine;
    world->fibers[own].together = together;
    wait(AT_WARP);
    return world->slots[own];
}

inline void run_copy(const Copy& copy) {
    if (copy.valid) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
}

inline void start_copy(const Copy& copy) {
    if (world->eager) run_copy(copy);
    else self().copies.push_back(copy);
}

inline void commit_copies() {
    if (!world->eager) self().groups.push_back(self().copies.size());
}

// Runs all copies but those of the last `left` groups.
inline void finish_copies(Fiber& fiber, size_t left) {
    size_t done = 0;
    while (fiber.groups.size() - done > left) done++;
    if (!done) return;
    size_t end = fiber.groups[done - 1];
    for (size_t i = 0; i < end; i++) run_copy(fiber.copies[i]);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + end);
    fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + done);
    for (size_t& group : fiber.groups) group -= end;
}

inline void fiber_entry() {
    (*world->body)();
    wait(DONE);
}

inline unsigned next_random(World& w) {
    w.random = w.random * 1664525u + 1013904223u;
    return w.random >> 8;
}

// Lets all lanes of a warp run to their next meeting. Says where they are then.
inline State run_warp(World& w, int warp) {
    Fiber* lanes = w.fibers + warp * LANES;
    int counts[4] = {};
    for (int i = 0; i < LANES; i++) {
        int lane = w.order == 1 ? LANES - 1 - i : i;
        thread_index.x = warp * LANES + lane;
        switch_context(&w.scheduler, &lanes[lane].context);
        if (w.failure) return DONE;
        counts[lanes[lane].state]++;
    }
    State state = lanes[0].state;
    if (counts[state] != LANES) {
        w.failure = "the lanes of a warp are not all at the same place: some left, or wait for something else";
        return DONE;
    }
    if (state != AT_WARP) return state;
    for (int i = 1; i < LANES; i++) {
        if (lanes[i].together != lanes[0].together) w.failure = "the lanes of a warp meet for different operations";
    }
    if (!w.failure) lanes[0].together(w.slots + warp * LANES);
    return READY;
}

inline int choose(World& w, const State* warps, int count) {
    int able[MOST_THREADS / LANES], n = 0;
    for (int i = 0; i < count; i++) {
        if (warps[i] == READY) able[n++] = i;
    }
    if (n == 0) return -1;
    if (w.order == 0) return able[0];
    if (w.order == 1) return able[n - 1];
    return able[next_random(w) % n];
}

// A block whose threads may wait for each other.
inline void run_fibers(World& w) {
    int count = w.block.x / LANES;
    State warps[MOST_THREADS / LANES] = {};
    for (unsigned i = 0; i < w.block.x; i++) {
        w.fibers[i].copies.clear();
        w.fibers[i].groups.clear();
        make_context(w.fibers[i].context, w.stacks.at(i), Stacks::size(i), fiber_entry);
    }
    for (;;) {
        int warp = choose(w, warps, count);
        if (warp >= 0) {
            warps[warp] = run_warp(w, warp);
            if (w.failure) return;
            continue;
        }
        int at_block = 0;
        for (int i = 0; i < count; i++) at_block += warps[i] == AT_BLOCK;
        if (at_block == 0) return;
        if (at_block != count) {
            w.failure = "not all warps come to a barrier";
            return;
        }
        for (int i = 0; i < count; i++) warps[i] = READY;
    }
}

// A block of a kernel in which no thread waits for another.
inline void run_plain(World& w) {
    unsigned n = w.block.x;
    unsigned first = w.order > 1 ? next_random(w) % n : 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned thread = first + i < n ? first + i : first + i - n;
        thread_index.x = w.order == 1 ? n - 1 - thread : thread;
        (*w.body)();
    }
}

inline void check_canary(World& w, size_t shared) {
    unsigned changed = 0;
    for (size_t i = shared; i < shared + CANARY; i++) changed |= w.shared[i] ^ 0xff;
    if (changed) w.failure = "a write beyond the shared memory that the launch asked for";
}

inline World& own_world() {
    struct Owner {
        World* world = new World();
        ~Owner() { delete world; }
    };
    static thread_local Owner owner;
    return *owner.world;
}

// Returns what went wrong, or null.
inline const char* launch(dim3 grid, dim3 block, size_t shared, unsigned order, bool plain,
                          const std::function<void()>& body) {
    if (block.x > MOST_THREADS || block.x % LANES) return "a block of an odd number of threads";
    if (shared > MOST_SHARED) return "more shared memory than a GPU has";
    World& w = own_world();
    w.grid = grid;
    w.block = block;
    w.body = &body;
    w.order = order;
    w.random = order;
    w.eager = order & 1;
    w.fibers_run = !plain;
    w.failure = nullptr;
    world = &w;
    size_t blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t i = 0; i < blocks && !w.failure; i++) {
        size_t at = order == 1 ? blocks - 1 - i : i;
        block_index = dim3{(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
        if (plain) {
            run_plain(w);
            continue;
        }
        // As NaNs, so that what is read before it is written shows.
        memset(w.shared, 0xff, shared + CANARY);
        memset(w.scratch, 0xff, SCRATCH);
        run_fibers(w);
        if (!w.failure) check_canary(w, shared);
    }
    return w.failure;
}

}  // namespace host
