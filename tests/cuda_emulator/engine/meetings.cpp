// Where threads meet: the barriers of a block and of a grid, the operations of a warp, shared memory, traps.
#include <algorithm>
#include <cstring>
#include "engine.h"

using namespace engine;

namespace {
bool grid_waits_for_all = false;  // of the barrier at which threads wait now

Thread* first_thread(const Block& block) { return threads.data() + (&block - blocks.data()) * size_t(block_size); }

Thread* first_lane() { return current - current->lane; }

unsigned lanes_of_warp() { return std::min(32u, block_size - current->warp * 32); }

void complete_block_barrier(Block& block) {
    block.arrived = 0;
    block.last_votes = block.votes;
    block.votes = 0;
    ++block.epoch;
    wake(first_thread(block), block_size, At::block_barrier);
}

void complete_grid_barrier() {
    grid_arrived = 0;
    ++grid_epoch;
    wake(threads.data(), threads.size(), At::grid_barrier);
}

WarpMeeting& meeting_of(unsigned mask) {
    Block& block = *current->block;
    if (block.warps.empty()) block.warps.resize((block_size + 31) / 32);
    auto& meetings = block.warps[current->warp];
    if (meetings.capacity() == 0) meetings.reserve(64);  // so that references to meetings stay valid
    for (WarpMeeting& meeting : meetings)
        if (meeting.mask == mask) return meeting;
    if (meetings.size() == 64) {
        fail("a warp operates with more than 64 different masks");
        abort_launch();
    }
    meetings.emplace_back();
    meetings.back().mask = mask;
    return meetings.back();
}

// Memory of all lanes of a mask is ordered: they enter a later epoch than any lane of the warp has seen.
void order_memory(unsigned mask, Thread* lanes, unsigned count) {
    unsigned next = 0;
    for (unsigned i = 0; i < count; ++i) next = std::max(next, lanes[i].warp_epoch + 1);
    for (unsigned i = 0; i < count; ++i)
        if (mask >> i & 1) lanes[i].warp_epoch = next;
}
}  // namespace

// A thread that has ended is no longer waited for. A grid's barrier waits for ever for a block that has ended.
void engine::thread_ended(Thread& thread) {
    Block& block = *thread.block;
    --block.live;
    --grid_live;
    if (!block.live) ++ended_blocks;
    else if (block.arrived == block.live) complete_block_barrier(block);
    if (grid_live && grid_arrived == grid_live && !(grid_waits_for_all && ended_blocks)) complete_grid_barrier();
}

extern "C" {
int emu_barrier(int line, int predicate, int vote) {
    Block& block = *current->block;
    if (block.arrived == 0) block.line = line;
    else if (block.line != line)
        fail(name_of(*current) + " is at the barrier of line " + std::to_string(line) +
             ", others of its block at that of line " + std::to_string(block.line));
    block.votes += predicate != 0;
    unsigned voters = block.live;
    if (++block.arrived == block.live) complete_block_barrier(block);
    else wait(At::block_barrier, line);
    if (vote == emu_vote_and) return block.last_votes == voters;
    if (vote == emu_vote_or) return block.last_votes != 0;
    return int(block.last_votes);
}

// The barrier of all threads that run. all_blocks: whether also blocks that have ended are waited for.
void emu_grid_barrier(int line, int all_blocks) {
    grid_waits_for_all = all_blocks;
    if (++grid_arrived == grid_live && !(all_blocks && ended_blocks)) complete_grid_barrier();
    else wait(At::grid_barrier, line);
}

// Gives a value, and returns those of all lanes of the mask once they are there.
const unsigned long long* emu_warp(int line, unsigned mask, unsigned long long value, int orders_memory) {
    mask &= emu_existing_lanes();
    if (!(mask >> current->lane & 1)) {
        fail(name_of(*current) + ", line " + std::to_string(line) + ": its lane is not in the mask it gives");
        abort_launch();
    }
    WarpMeeting& meeting = meeting_of(mask);
    if (meeting.arrived == 0) meeting.line = line;
    else if (meeting.line != line)
        fail(name_of(*current) + " is at the warp operation of line " + std::to_string(line) +
             ", other lanes of its mask at that of line " + std::to_string(meeting.line));
    unsigned long long* values = meeting.value[meeting.generation & 1];
    values[current->lane] = value;
    meeting.arrived |= 1u << current->lane;
    if (meeting.arrived != mask) {
        wait(At::warp_operation, line);
        return values;
    }
    meeting.arrived = 0;
    ++meeting.generation;
    unsigned count = lanes_of_warp();
    if (orders_memory) order_memory(mask, first_lane(), count);
    for (unsigned i = 0; i < count; ++i)
        if (mask >> i & 1) wake(first_lane() + i, 1, At::warp_operation);
    return values;
}

unsigned emu_existing_lanes() {
    unsigned count = lanes_of_warp();
    return count == 32 ? ~0u : (1u << count) - 1;
}

unsigned emu_live_lanes() {
    unsigned mask = 0;
    for (unsigned i = 0; i < lanes_of_warp(); ++i)
        if (first_lane()[i].state != State::done) mask |= 1u << i;
    return mask;
}

unsigned emu_lane() { return current->lane; }

void* emu_dynamic_shared() { return current->block->dynamic; }

// The same place in the dynamic shared memory of another block of the cluster.
void* emu_map_shared(void* own, unsigned rank) {
    const Block* block = current->block;
    return (block - block->cluster_rank + rank)->dynamic + ((char*)own - block->dynamic);
}

unsigned emu_cluster_rank() { return current->block->cluster_rank; }

unsigned emu_cluster_size() { return cluster_size; }

void emu_trap(const char* what, int line) {
    fail(name_of(*current) + ": " + what + ", line " + std::to_string(line));
    abort_launch();
}
}
