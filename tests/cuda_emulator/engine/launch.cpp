// A launch: its blocks one after another, the blocks of a cluster together, all blocks of a cooperative grid together.
#include <immintrin.h>
#include <algorithm>
#include <cstring>
#include <random>
#include "engine.h"

emu_uint3 emu_threadIdx, emu_blockIdx, emu_blockDim, emu_gridDim;

namespace engine {
Options options;
const EmuKernel* kernel;
void** arguments;
std::vector<Thread> threads;
std::vector<Block> blocks;
Thread* current;
unsigned block_size, cluster_size, grid_live, grid_arrived, grid_epoch, ended_blocks;
char *dynamic_begin, *dynamic_end;
bool aborted;

namespace {
std::string errors;  // of this launch, a line each

emu_uint3 place_in_grid(unsigned number) {
    unsigned x = emu_gridDim.x, y = emu_gridDim.y;
    return {number % x, number / x % y, number / (x * y)};
}

void place_thread(Thread& thread, unsigned index, Block& block) {
    thread = Thread();
    thread.block = &block;
    thread.index = index;
    thread.warp = index / 32;
    thread.lane = index % 32;
}

void place_block(Block& block, unsigned number, unsigned live, char* dynamic) {
    block = Block();
    block.number = number;
    block.index = place_in_grid(number);
    block.live = live;
    block.dynamic = dynamic;
    block.cluster_rank = number % cluster_size;
}

std::vector<unsigned> order_of(unsigned count, unsigned long long seed) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = options.order == backward ? count - 1 - i : i;
    std::mt19937_64 random(seed);
    if (options.order == shuffled) std::shuffle(order.begin(), order.end(), random);
    return order;
}

// A block whose threads never wait: each runs to its end on the caller's own stack.
void run_without_fibers(unsigned number) {
    threads.assign(1, Thread());
    blocks.assign(1, Block());
    place_block(blocks[0], number, block_size, dynamic_begin);
    poison_shared_memory();
    emu_blockIdx = blocks[0].index;
    for (unsigned i : order_of(block_size, options.seed)) {
        place_thread(threads[0], i, blocks[0]);
        current = &threads[0];
        emu_threadIdx = {i % emu_blockDim.x, i / emu_blockDim.x % emu_blockDim.y, i / (emu_blockDim.x * emu_blockDim.y)};
        kernel->call(arguments);
    }
}

// Some blocks at once, each thread a fiber.
void run_together(unsigned first_block, unsigned count, size_t shared) {
    threads.assign(size_t(block_size) * count, Thread());
    blocks.assign(count, Block());
    for (unsigned c = 0; c < count; ++c) {
        place_block(blocks[c], first_block + c, block_size, dynamic_begin + shared * c);
        for (unsigned i = 0; i < block_size; ++i) place_thread(threads[c * size_t(block_size) + i], i, blocks[c]);
    }
    poison_shared_memory();
    grid_live = threads.size();
    grid_arrived = ended_blocks = 0;
    run_all();
}

void launch(size_t shared, bool cooperative) {
    unsigned count = emu_gridDim.x * emu_gridDim.y * emu_gridDim.z;
    unsigned together = cooperative ? count : cluster_size;
    std::vector<char> memory(shared * together + 128);
    dynamic_begin = (char*)(((size_t)memory.data() + 127) & ~size_t(127));
    dynamic_end = dynamic_begin + shared * together;
    grid_epoch = 0;
    aborted = false;
    forget_accesses();
    bool fibers = kernel->fibers || kernel->checked || together > 1;
    for (unsigned group : order_of(count / together, options.seed ^ 77)) {
        if (fibers) run_together(group * together, together, shared);
        else run_without_fibers(group);
        if (aborted || errors.size() > 3000) break;
    }
    current = nullptr;
}
}  // namespace

void fail(const std::string& what) {
    if (errors.size() < 4000) errors += (errors.empty() ? "" : "\n") + what;
}

std::string name_of(const Thread& thread) {
    unsigned x = emu_blockDim.x, y = emu_blockDim.y, i = thread.index;
    auto triple = [](unsigned a, unsigned b, unsigned c) {
        return "(" + std::to_string(a) + "," + std::to_string(b) + "," + std::to_string(c) + ")";
    };
    const emu_uint3& block = thread.block->index;
    return "block " + triple(block.x, block.y, block.z) + " thread " + triple(i % x, i / x % y, i / (x * y));
}

void poison_shared_memory() {
    if (!options.poison) return;
    memset(dynamic_begin, 0xFF, dynamic_end - dynamic_begin);
    memset(kernel->shared_begin, 0xFF, kernel->shared_end - kernel->shared_begin);
}
}  // namespace engine

using namespace engine;

extern "C" {
// The order of threads and blocks, the seed of a shuffled one, whether shared memory begins as NaN, whether accesses of
// checked kernels outside every known buffer are errors.
void emu_options(int order, unsigned long long seed, int poison, int bounds) {
    options = {order, seed, poison != 0, bounds != 0};
}

const char* emu_error() { return errors.c_str(); }

// Runs a kernel. Returns 0 if nothing was found; otherwise emu_error says what.
int emu_launch(const EmuKernel* what, void** values, const unsigned* grid, const unsigned* block, size_t shared,
               int cooperative) {
    errors.clear();
    kernel = what;
    arguments = values;
    emu_gridDim = {grid[0], grid[1], grid[2]};
    emu_blockDim = {block[0], block[1], block[2]};
    block_size = block[0] * block[1] * block[2];
    cluster_size = what->cluster ? what->cluster : 1;
    size_t count = size_t(grid[0]) * grid[1] * grid[2];
    if (count == 0 || count > 0x7fffffff || block_size == 0 || block_size > 1024 || count % cluster_size) {
        fail("a grid of " + std::to_string(count) + " blocks of " + std::to_string(block_size) + " threads cannot be launched");
        return 1;
    }
    unsigned control = _mm_getcsr();
    if (what->flush) _mm_setcsr(control | 0x8040);  // flush results to zero, take subnormal operands for zero
    launch(shared, cooperative != 0);
    _mm_setcsr(control);
    return !errors.empty();
}
}
