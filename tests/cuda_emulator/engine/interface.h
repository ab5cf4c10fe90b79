// What the engine offers to kernels and to the stand-ins for CUDA's libraries. A C interface: it crosses libraries.
#pragma once
#include <cstddef>

struct emu_uint3 {
    unsigned x, y, z;
};

// A compiled kernel. cuda_source.py writes one of these for each __global__ function.
struct EmuKernel {
    void (*call)(void** arguments);  // runs the kernel's body for one thread
    const size_t* sizes;             // of the arguments, in bytes
    unsigned count;                  // of the arguments
    unsigned cluster;                // blocks of a cluster; 0: the kernel has no clusters
    unsigned fibers;                 // whether threads may wait or stop, so that each needs a stack of its own
    unsigned checked;                // whether it was compiled with the hooks of checks.cpp
    unsigned flush;                  // whether float32 subnormals are zero, as under CuPy's -ftz=true
    char *shared_begin, *shared_end; // its static __shared__ variables
    char *image_begin, *image_end;   // its library in memory
};

// How one of the barriers votes.
enum EmuVote { emu_vote_count, emu_vote_and, emu_vote_or };

extern emu_uint3 emu_threadIdx, emu_blockIdx, emu_blockDim, emu_gridDim;

extern "C" {
// For kernels. `line` is the place in the source, for messages.
int emu_barrier(int line, int predicate, int vote);
void emu_grid_barrier(int line, int all_blocks);
const unsigned long long* emu_warp(int line, unsigned mask, unsigned long long value, int orders_memory);
unsigned emu_existing_lanes();
unsigned emu_live_lanes();
unsigned emu_lane();
void* emu_dynamic_shared();
void* emu_map_shared(void* own, unsigned rank);
unsigned emu_cluster_rank();
unsigned emu_cluster_size();
void emu_trap(const char* what, int line);
void emu_atomic(void* address, unsigned size);
void emu_fence();

// For those who launch kernels.
int emu_launch(const EmuKernel*, void** arguments, const unsigned* grid, const unsigned* block, size_t shared,
               int cooperative);
void emu_options(int order, unsigned long long seed, int poison, int bounds);
void emu_known(void* begin, size_t size, int present);
const char* emu_error();
}
