// Fibers: stacks between which a thread switches by itself. The threads of an emulated block are fibers.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace host {

#if defined(__x86_64__)
// swapcontext() makes a system call each time. Of the registers, System V leaves these six to the callee.
struct Context {
    void* stack_pointer;
};

__attribute__((naked, noinline)) inline void switch_context(Context*, Context*) {
    asm volatile(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        // A `ret` would be predicted to go where this function was last called from, which is never right.
        "popq %rcx\n jmpq *%rcx\n");
}

inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
    uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)15;
    void** place = (void**)(top - 16);
    // The first switch "returns" into `entry`, with the stack aligned as after a call.
    place[0] = (void*)entry;
    place[1] = nullptr;
    for (int i = 0; i < 6; i++) *--place = nullptr;
    context.stack_pointer = place;
}
#else
typedef ucontext_t Context;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

// Stacks that are kept from launch to launch: their pages stay in memory and mostly in the cache.
class Stacks {
public:
    ~Stacks() {
        for (char* stack : stacks) free(stack);
    }

    char* at(size_t index) {
        while (stacks.size() <= index) {
            // Not touched here: a fiber uses one or two pages of it.
            char* stack = (char*)aligned_alloc(4096, SIZE);
            if (!stack) throw std::bad_alloc();
            stacks.push_back(stack);
        }
        return stacks[index];
    }

    // Stacks that begin at the same place of their pages would share few lines of the cache.
    static size_t size(size_t index) { return SIZE - index % 16 * 256; }

private:
    static const size_t SIZE = 64 << 10;
    std::vector<char*> stacks;
};

}  // namespace host
