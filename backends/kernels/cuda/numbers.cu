// Numbers about arrays: what a step records, and how many elements are not finite.

// Puts numbers into the record of the step. VALUE is their type.
#ifndef VALUE
#define VALUE real
#endif
extern "C" __global__ void collect(const VALUE* numbers, Record record, int64 step, int64 column, int64 size) {
    int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) keep(record, step, column + i, (double)numbers[i]);
}

// Up to 16 arrays.
struct Arrays {
    const real* at[16];
    int64 size[16];
};

// For each block, how many of its elements are not finite. Blocks: parts x arrays.
extern "C" __global__ void count_not_finite(Arrays arrays, int* counts) {
    const real* x = arrays.at[blockIdx.y];
    int count = 0;
    for (int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x; i < arrays.size[blockIdx.y]; i += (int64)gridDim.x * blockDim.x)
        count += !is_finite(x[i]);
    count = block_sum(count);
    if (threadIdx.x == 0) counts[blockIdx.y * gridDim.x + blockIdx.x] = count;
}
