// Softmax and cross-entropy in exact numerics, with the gradient, the number of right predictions, and the slices of the
// gradient's rows. LABEL is the type of the labels. Terms and sums are those of backends/exact/kernels/compiled_loops.py.

// A logit minus the largest of its row. Infinity minus infinity is 0.
__device__ inline double below(double z, double top) { return z == top ? 0.0 : z - top; }

struct Batch {
    const float* z;
    const LABEL* labels;
    float* g;
    double* wide;  // two slices of each row of g, of `bits` bits (2 n, classes); null for none
    int64 n, classes, bits, class_bits, row_bits;
};
// loss, right: where the numbers go, with the columns of the record, or -1. right is null if nothing counts.
struct Numbers {
    float *loss, *right;
    int64 loss_column, right_column;
};

// One row by one warp. Returns its term of the loss.
__device__ inline double row_of(const Batch& b, int64 row) {
    int lane = threadIdx.x % 32, classes = (int)b.classes, field = 0;
    const float* z = b.z + row * classes;
    float* g = b.g + row * classes;
    double top = -UNBOUNDED, total = 0.0, share = 1.0 / (double)b.n;
    for (int j = lane; j < classes; j += 32) top = larger(top, entered(z[j]));
    top = warp_max(top);
    double s = top > -UNBOUNDED ? splitter(exponent_of(1.0), b.class_bits) : QUIET_NAN;  // the largest e^(z - top) is 1
    for (int j = lane; j < classes; j += 32) total += slice(exponential(below(entered(z[j]), top)), s);
    total = warp_sum(total);
    int64 label = b.labels[row];
    bool known = label >= 0 && label < classes;  // a wrong label makes the loss and its row NaN
    double picked = known ? below(entered(z[label]), top) : QUIET_NAN;
    if (!known) total = QUIET_NAN;
    for (int j = lane; j < classes; j += 32) {
        double error = exponential(below(entered(z[j]), top)) / total - (j == label ? 1.0 : 0.0);
        g[j] = left(error * share);
        field = max(field, exponent_of(entered(g[j])));
    }
    if (b.wide) {
        field = warp_max(field);
        double first = splitter(field, b.bits), second = splitter(field, 2 * b.bits + 1);
        for (int j = lane; j < classes; j += 32) {
            double x = entered(g[j]), high = slice(x, first);
            b.wide[row * classes + j] = high;
            b.wide[(row + b.n) * classes + j] = slice(x - high, second);
        }
    }
    return logarithm(total) - slice(picked, splitter(exponent_of(picked), b.class_bits));
}

// Blocks of whole warps, a warp for a row. The block that comes last adds the terms of all rows.
extern "C" __global__ void __launch_bounds__(1024)
exact_cross_entropy(Batch b, double* terms, int* rights, Numbers to, Record record, int64 step, int* counter) {
    int64 warps = blockDim.x / 32;
    for (int64 row = blockIdx.x * warps + threadIdx.x / 32; row < b.n; row += gridDim.x * warps) {
        double term = row_of(b, row);
        int best = to.right ? predicted(b.z + row * b.classes, (int)b.classes) : 0;
        if (threadIdx.x % 32) continue;
        terms[row] = term;
        if (to.right) rights[row] = best == b.labels[row];
    }
    if (!is_last(counter, gridDim.x)) return;
    const volatile double* every = terms;
    const volatile int* hits = rights;
    int field = 0, right = 0;
    for (int64 row = threadIdx.x; row < b.n; row += blockDim.x) field = max(field, exponent_of(every[row]));
    double s = splitter(block_max(field), b.row_bits), total = 0.0;
    for (int64 row = threadIdx.x; row < b.n; row += blockDim.x) {
        total += slice(every[row], s);
        if (to.right) right += hits[row];
    }
    total = block_sum(total);
    if (to.right) right = block_sum(right);
    if (threadIdx.x) return;
    *to.loss = left(total / (double)b.n);
    keep(record, step, to.loss_column, *to.loss);
    if (!to.right) return;
    *to.right = (float)right;
    keep(record, step, to.right_column, right);
}
