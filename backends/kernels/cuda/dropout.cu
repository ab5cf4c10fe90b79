// Dropout: the mask from Philox4x64-10, with the bits of backends/random.py, and the op.

// The four words of one block of the stream. Salmon et al., SC 2011, table 2 and section 3.
__device__ inline void philox(uint64 block, uint64 step, uint64 index, uint64 purpose, uint64 seed, uint64* words) {
    uint64 c0 = block, c1 = step, c2 = index, c3 = purpose, k0 = seed, k1 = 0;
    for (int round = 0; round < 10; ++round) {
        uint64 high0 = __umul64hi(c0, 0xD2E7470EE14C6C93ull), low0 = c0 * 0xD2E7470EE14C6C93ull;
        uint64 high1 = __umul64hi(c2, 0xCA5A826395121157ull), low1 = c2 * 0xCA5A826395121157ull;
        c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B97F4A7C15ull, k1 += 0xBB67AE8584CAA73Bull;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// keep = a half word >= threshold. A thread makes the eight elements of one block; NumPy's first block has number 1.
//   state: the number of the chunk's first step, -, the seed.
extern "C" __global__ void keep_mask(bool* keep, int64 size, const int64* state, int64 step, int64 index, int64 purpose,
                                     int64 threshold) {
    int64 block = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (block * 8 >= size) return;
    uint64 words[4];
    philox(block + 1, state[0] + step, index, purpose, state[2], words);
    for (int j = 0; j < 8 && block * 8 + j < size; ++j)
        keep[block * 8 + j] = (words[j / 2] >> (j % 2 * 32) & 0xffffffffu) >= (uint64)threshold;
}

// y = x / (1 - rate) where keep is true, else 0; its gradient is the same function.
extern "C" __global__ void dropout(const real* x, const bool* keep, real* y, int64 size, double scale) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = keep[i] ? x[i] * (real)scale : (real)0;
}
