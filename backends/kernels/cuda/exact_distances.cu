// Losses of outputs and targets in exact numerics: the terms of distances.cu, which stands in front of this file, with an
// exact sum. The terms are kept. The block that comes last adds them all, so that one launch is enough.
extern "C" __global__ void __launch_bounds__(1024)
exact_distance(Batch b, double* terms, int64 bits, float* loss, int64 column, Record record, int64 step, int* counter) {
    int64 size = b.n * b.width, threads = (int64)gridDim.x * blockDim.x;
    double slope, share = b.by.share();
    for (int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += threads) {
        terms[i] = term_of(b.kind, entered(b.p[i]), entered(b.t[i]), b.delta, 0.0, &slope);
        b.g[i] = left(slope * share);
    }
    if (!is_last(counter, gridDim.x)) return;
    const volatile double* every = terms;
    int field = 0;
    for (int64 i = threadIdx.x; i < size; i += blockDim.x) field = max(field, exponent_of(every[i]));
    double s = splitter(block_max(field), bits), total = 0.0;
    for (int64 i = threadIdx.x; i < size; i += blockDim.x) total += slice(every[i], s);
    total = block_sum(total);
    if (threadIdx.x) return;
    *loss = left(b.by.divided(total));
    keep(record, step, column, *loss);
}
