// Dropout: the mask from Philox4x64-10, with the bits of backends/random.py, and the op.

// keep = a half word >= threshold. A thread makes the eight elements of one block; NumPy's first block has number 1.
//   state: the number of the chunk's first step, -, the seed. again: how often the layer has drawn before in this step.
extern "C" __global__ void keep_mask(bool* keep, int64 size, const int64* state, int64 step, int64 again, int64 index,
                                     int64 purpose, int64 threshold) {
    int64 block = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (block * 8 >= size) return;
    uint64 words[4];
    philox(block + 1, state[0] + step + again, index, purpose, state[2], words);
    for (int j = 0; j < 8 && block * 8 + j < size; ++j)
        keep[block * 8 + j] = (words[j / 2] >> (j % 2 * 32) & 0xffffffffu) >= (uint64)threshold;
}

// y = x / (1 - rate) where keep is true, else 0; its gradient is the same function.
extern "C" __global__ void dropout(const stored* x, const bool* keep, stored* y, int64 size, double scale) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = keep[i] ? left(entered(x[i]) * (real)scale) : (stored)0;
}
