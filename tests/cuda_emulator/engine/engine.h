// The engine's own state: the threads and blocks that run, and what its files ask of one another.
#pragma once
#include <string>
#include <vector>
#include "interface.h"

namespace engine {

// Lanes of one warp that meet in a warp operation (a shuffle, a vote, __syncwarp) with one mask.
struct WarpMeeting {
    unsigned mask, arrived = 0, generation = 0;
    int line = 0;
    unsigned long long value[2][32];  // by generation: a fast lane may already be in the next operation
};

struct Block {
    emu_uint3 index = {};
    unsigned number = 0;               // of all blocks of the launch
    unsigned live = 0, arrived = 0;    // threads that have not ended; of these, threads at the barrier
    unsigned epoch = 0;                // how many barriers are done
    int line = 0;                      // of the barrier
    unsigned votes = 0, last_votes = 0;
    unsigned cluster_rank = 0;
    char* dynamic = nullptr;           // its dynamic shared memory
    std::vector<char> statics;         // its static shared memory while another block runs
    std::vector<std::vector<WarpMeeting>> warps;
    unsigned long long acquired = 0;   // when one of its threads last did an atomic operation
};

enum class State : unsigned char { fresh, ready, waiting, done };
enum class At : unsigned char { nothing, block_barrier, grid_barrier, warp_operation };

// One CUDA thread: a fiber, that is, a stack of its own on the one thread of the CPU.
struct Thread {
    Block* block = nullptr;
    unsigned index = 0, warp = 0, lane = 0, warp_epoch = 0;
    State state = State::fresh;
    At at = At::nothing;  // where it waits, and in which line
    int line = 0;
    void* stack_pointer = nullptr;
    char* stack = nullptr;
};

enum Order { forward, backward, shuffled };
struct Options {
    int order = forward;
    unsigned long long seed = 1;
    bool poison = true;  // shared memory begins as NaN
    bool bounds = false;
};

// What runs now.
extern Options options;
extern const EmuKernel* kernel;
extern void** arguments;
extern std::vector<Thread> threads;  // those that run at once: of one block, a cluster or the whole grid
extern std::vector<Block> blocks;
extern Thread* current;
extern unsigned block_size, cluster_size;
extern unsigned grid_live, grid_arrived, grid_epoch;  // threads of all blocks, as live, arrived and epoch of one
extern unsigned ended_blocks;
extern char *dynamic_begin, *dynamic_end;
extern bool aborted;  // a thread cannot go on: nothing more of the launch runs

// launch.cpp
void fail(const std::string& what);
std::string name_of(const Thread& thread);
void poison_shared_memory();

// fibers.cpp
void run(Thread& thread);                  // until it waits or ends
void run_all();                            // every thread, until all have ended or none can go on
void wait(At place, int line);             // of the current thread
[[noreturn]] void abort_launch();          // of the current thread
void wake(Thread* first, size_t count, At place);
bool is_local_variable(const char* address);

// meetings.cpp
void thread_ended(Thread& thread);

// checks.cpp
void forget_accesses();
}  // namespace engine
