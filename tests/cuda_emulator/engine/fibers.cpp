// Threads as fibers: a stack for each, and a switch from one to another that saves what the x86-64 calling convention
// says a function must preserve. A thread runs until it waits or ends; then the scheduler picks the next one.
#include <sys/mman.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include "engine.h"

// Saves the registers and the stack pointer of one fiber, and goes on with another.
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** from, void* to);

namespace engine {
namespace {
constexpr size_t stack_size = 128 << 10;
constexpr size_t arena_size = size_t(16) << 30;  // address space only: memory is taken where it is touched
char* arena = nullptr;
size_t arena_used = 0;
std::vector<char*> free_stacks;
void* scheduler = nullptr;  // the stack pointer of the loop that picks threads
Block* resident = nullptr;  // whose static shared memory lies in the kernel's variables

char* take_stack() {
    if (!free_stacks.empty()) {
        char* stack = free_stacks.back();
        free_stacks.pop_back();
        return stack;
    }
    if (!arena) {
        void* memory = mmap(nullptr, arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        arena = memory == MAP_FAILED ? nullptr : (char*)memory;
    }
    if (!arena || arena_used + stack_size > arena_size) {
        fprintf(stderr, "cuda_emulator: no memory for the stacks of so many threads\n");
        abort();
    }
    char* stack = arena + arena_used;
    arena_used += stack_size;
    return stack;
}

void back_to_scheduler() { emu_switch(&current->stack_pointer, scheduler); }

// The first function on a fiber's stack.
void thread_body() {
    kernel->call(arguments);
    current->state = State::done;
    free_stacks.push_back(current->stack);
    thread_ended(*current);
    back_to_scheduler();
    abort();  // nobody goes on with a thread that has ended
}

// A stack on which emu_switch "returns" into thread_body, with the alignment that a called function expects.
void prepare_stack(Thread& thread) {
    thread.stack = take_stack();
    void** top = (void**)(thread.stack + stack_size);
    *--top = nullptr;
    *--top = (void*)thread_body;
    for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
    thread.stack_pointer = top;
}

// Puts the static shared memory of a block into the kernel's variables, and saves that of the block before.
void make_resident(Block& block) {
    if (resident == &block) return;
    size_t size = kernel->shared_end - kernel->shared_begin;
    if (size && blocks.size() > 1) {
        if (resident) resident->statics.assign(kernel->shared_begin, kernel->shared_end);
        if (!block.statics.empty()) memcpy(kernel->shared_begin, block.statics.data(), size);
        else if (options.poison) memset(kernel->shared_begin, 0xFF, size);
    }
    resident = &block;
}

void report_deadlock() {
    static const char* names[] = {"nothing", "__syncthreads", "a barrier of the grid", "a warp operation"};
    for (const Thread& thread : threads) {
        if (thread.state != State::waiting) continue;
        fail(name_of(thread) + " waits for ever at " + names[int(thread.at)] + ", line " + std::to_string(thread.line) + " (" +
             std::to_string(thread.block->arrived) + " of " + std::to_string(thread.block->live) +
             " threads of the block are at its barrier)");
        return;
    }
}
}  // namespace

void run(Thread& thread) {
    current = &thread;
    make_resident(*thread.block);
    emu_blockIdx = thread.block->index;
    unsigned x = emu_blockDim.x, y = emu_blockDim.y, i = thread.index;
    emu_threadIdx = {i % x, i / x % y, i / (x * y)};
    if (thread.state == State::fresh) prepare_stack(thread);
    thread.state = State::ready;
    emu_switch(&scheduler, thread.stack_pointer);
}

void run_all() {
    resident = nullptr;
    std::vector<unsigned> order(threads.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = options.order == backward ? order.size() - 1 - i : i;
    std::mt19937_64 random(options.seed);
    for (bool moved = true, left = true; moved && left;) {
        moved = left = false;
        if (options.order == shuffled) std::shuffle(order.begin(), order.end(), random);
        for (unsigned i : order) {
            Thread& thread = threads[i];
            if (thread.state == State::fresh || thread.state == State::ready) {
                run(thread);
                moved = true;
                if (aborted) break;
            }
            left |= thread.state != State::done;
        }
        if (aborted) break;
        if (!moved && left) report_deadlock();
    }
    for (Thread& thread : threads)
        if (thread.stack && thread.state != State::done) free_stacks.push_back(thread.stack);
}

void wait(At place, int line) {
    current->state = State::waiting;
    current->at = place;
    current->line = line;
    back_to_scheduler();
}

void abort_launch() {
    aborted = true;
    back_to_scheduler();
    abort();
}

void wake(Thread* first, size_t count, At place) {
    for (Thread* thread = first; thread < first + count; ++thread)
        if (thread->state == State::waiting && thread->at == place) thread->state = State::ready;
}

bool is_local_variable(const char* address) { return address >= arena && address < arena + arena_used; }
}  // namespace engine
