// The part of cooperative groups that the emulator has. A negative line number stands for a group's own operation.
#pragma once
#include "cuda_host.h"

namespace cooperative_groups {
struct thread_block {
    void sync() const { emu_barrier(-1, 0, emu_vote_count); }
    unsigned thread_rank() const { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }
    unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
};
inline thread_block this_thread_block() { return {}; }

// Grids and blocks of one dimension only.
struct grid_group {
    void sync() const { emu_grid_barrier(-1, 1); }
    unsigned long long thread_rank() const { return (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; }
    unsigned long long size() const { return (unsigned long long)gridDim.x * blockDim.x; }
    bool is_valid() const { return true; }
};
inline grid_group this_grid() { return {}; }

// The blocks of a cluster run together, and no others: the barrier of all that run is the cluster's.
struct cluster_group {
    void sync() const { emu_grid_barrier(-2, 0); }
    unsigned block_rank() const { return emu_cluster_rank(); }
    unsigned num_blocks() const { return emu_cluster_size(); }
    template <class T> T* map_shared_rank(T* p, unsigned rank) const { return (T*)emu_map_shared((void*)p, rank); }
};
inline cluster_group this_cluster() { return {}; }

template <unsigned N> struct tile {
    unsigned lane = emu_lane() % N, first = emu_lane() / N * N;
    unsigned mask = N == 32 ? ~0u : ((1u << N % 32) - 1) << first;
    unsigned thread_rank() const { return lane; }
    static constexpr unsigned size() { return N; }
    void sync() const { emu_syncwarp(-3, mask); }
    template <class T> T shfl(T value, int source) const { return emu_shfl(-3, mask, value, source, N); }
    template <class T> T shfl_down(T value, unsigned distance) const { return emu_shfl_down(-3, mask, value, distance, N); }
    template <class T> T shfl_xor(T value, int bits) const { return emu_shfl_xor(-3, mask, value, bits, N); }
    unsigned ballot(int predicate) const { return emu_ballot(-3, mask, predicate) >> first; }
};
template <unsigned N, class G> tile<N> tiled_partition(const G&) { return {}; }
}  // namespace cooperative_groups
