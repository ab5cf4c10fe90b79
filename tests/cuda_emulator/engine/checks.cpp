// Finds races and accesses out of bounds. A checked kernel is compiled with g++ -fsanitize=thread, which calls a hook
// before each access to memory; the hooks are the functions below, and libtsan is not linked.
//
// For each byte the last write and the last reads are kept. Two accesses race if one of them is a write, they are of
// two threads, and no barrier, fence or __syncwarp lies between them.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <unordered_map>
#include "engine.h"

using namespace engine;

namespace {
constexpr unsigned nobody = ~0u;

// One access: by whom, and after which barriers.
struct Access {
    unsigned thread = nobody, thread_in_block = 0, block = 0;
    unsigned block_epoch = 0, warp = 0, warp_epoch = 0, grid_epoch = 0;
    bool atomic = false;
    unsigned long long time = 0;
};
struct Byte {
    Access write, read, other_read;  // the reads of two threads: one of them is not the thread that writes next
};
struct Range {
    char *begin, *end;
};

std::unordered_map<uintptr_t, std::array<Byte, 4>> accesses;   // by aligned word
std::unordered_map<unsigned, unsigned long long> fences;       // by block: when one of its threads last did a fence
unsigned long long now = 0;
std::vector<Range> known;                                      // the buffers on the device, sorted by address

Access access_of_current(bool atomic) {
    const Thread& t = *current;
    const Block& b = *t.block;
    return {b.number * 1024 + t.index, t.index, b.number, b.epoch, t.warp, t.warp_epoch, grid_epoch, atomic, ++now};
}

// Whether an access lies before the one of the current thread by the rules of CUDA.
bool ordered(const Access& before, const Access& after) {
    if (before.thread == nobody || before.thread == after.thread || (before.atomic && after.atomic)) return true;
    if (before.grid_epoch < after.grid_epoch) return true;
    if (before.block != after.block) {
        // Written, fenced, then read after an atomic operation, which may have seen the flag: that is trusted.
        auto fence = fences.find(before.block);
        return fence != fences.end() && before.time < fence->second && fence->second < current->block->acquired;
    }
    if (before.block_epoch < after.block_epoch) return true;
    return before.warp == after.warp && before.warp_epoch < after.warp_epoch;
}

bool is_static_shared(const char* p) { return p >= kernel->shared_begin && p < kernel->shared_end; }

bool is_dynamic_shared(const char* p) { return p >= dynamic_begin && p < dynamic_end; }

// Local variables, constants, and the engine's threadIdx and the like.
bool is_private(const char* p) {
    for (const emu_uint3* index : {&emu_threadIdx, &emu_blockIdx, &emu_blockDim, &emu_gridDim})
        if (p >= (const char*)index && p < (const char*)(index + 1)) return true;
    bool constant = p >= kernel->image_begin && p < kernel->image_end && !is_static_shared(p);
    return constant || is_local_variable(p);
}

void report_race(const char* what, const char* address, const Access& earlier) {
    char place[32];
    snprintf(place, sizeof place, "%p", address);
    bool shared = is_static_shared(address) || is_dynamic_shared(address);
    fail(std::string("race, ") + what + ": " + name_of(*current) + " after thread " + std::to_string(earlier.thread_in_block) +
         " of block " + std::to_string(earlier.block) + ", " + (shared ? "shared" : "global") + " memory at " + place);
}

// Whether an access to global memory lies within one buffer. A write that does not ends the launch.
bool within_bounds(char* p, unsigned size, bool write) {
    auto next = std::upper_bound(known.begin(), known.end(), p, [](char* q, const Range& r) { return q < r.begin; });
    bool below_all = next == known.begin();
    if (!below_all && p + size <= (next - 1)->end) return true;
    std::string text = "out of bounds: " + name_of(*current) + (write ? " writes " : " reads ") + std::to_string(size) + " bytes";
    if (!below_all) {
        const Range& nearest = *(next - 1);
        text += ", " + std::to_string(p - nearest.begin) + " after the start of a buffer of " +
                std::to_string(nearest.end - nearest.begin);
    }
    fail(text);
    if (write) abort_launch();
    return false;
}

// An access that an access to one byte races with.
struct Race {
    const char* what = nullptr;  // nullptr: there is none
    Access earlier;
};

Race use_byte(uintptr_t key, const Access& me, bool write) {
    Byte& byte = accesses[key & ~uintptr_t(3)][key & 3];
    Race race;
    if (!ordered(byte.write, me)) race = {write ? "write after write" : "read after write", byte.write};
    if (write) {
        for (const Access& read : {byte.read, byte.other_read})
            if (!race.what && !ordered(read, me)) race = {"write after read", read};
        byte.write = me;
        byte.read = byte.other_read = Access();
    } else {
        if (byte.read.thread != me.thread) byte.other_read = byte.read;
        byte.read = me;
    }
    return race;
}

void check(void* address, size_t size, bool write, bool atomic) {
    char* p = (char*)address;
    if (!current || is_private(p)) return;
    bool shared = is_static_shared(p) || is_dynamic_shared(p);
    if (options.bounds && !shared && !within_bounds(p, size, write)) return;
    Access me = access_of_current(atomic);
    // Blocks use the same addresses for shared memory, one after another: a number in the unused bits tells them apart.
    bool of_block = is_static_shared(p) || (shared && blocks.size() == 1);
    uintptr_t tag = of_block ? uintptr_t(current->block->number + 1) << 48 : 0;
    Race first;
    for (size_t i = 0; i < size; ++i) {
        Race race = use_byte((uintptr_t)(p + i) ^ tag, me, write);
        if (!first.what) first = race;
    }
    if (first.what) report_race(first.what, p, first.earlier);
}
}  // namespace

void engine::forget_accesses() {
    accesses.clear();
    fences.clear();
}

extern "C" {
// An atomic operation. It may also be the one that sees another block's flag.
void emu_atomic(void* address, unsigned size) {
    if (!kernel->checked) return;
    check(address, size, true, true);
    current->block->acquired = ++now;
}

void emu_fence() { fences[current->block->number] = ++now; }

// Says that a buffer exists, or does not exist any more.
void emu_known(void* begin, size_t size, int present) {
    char* start = (char*)begin;
    auto at = std::lower_bound(known.begin(), known.end(), start, [](const Range& r, char* p) { return r.begin < p; });
    if (present) known.insert(at, {start, start + size});
    else if (at != known.end() && at->begin == start) known.erase(at);
}

// The hooks. g++ names them.
#define HOOKS(size) \
    void __tsan_read##size(void* p) { check(p, size, false, false); } \
    void __tsan_write##size(void* p) { check(p, size, true, false); } \
    void __tsan_unaligned_read##size(void* p) { check(p, size, false, false); } \
    void __tsan_unaligned_write##size(void* p) { check(p, size, true, false); } \
    void __tsan_volatile_read##size(void* p) { check(p, size, false, true); } \
    void __tsan_volatile_write##size(void* p) { check(p, size, true, true); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t size) { check(p, size, false, false); }
void __tsan_write_range(void* p, size_t size) { check(p, size, true, false); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
