// Softmax and cross-entropy of logits z (n, classes) and integer labels, with the gradient, the number of right
// predictions, and the gradient of the last bias. LABEL is the type of the labels.

// A logit minus the largest of its row. Infinity minus infinity is 0 here, so that an infinite logit has probability 1.
__device__ inline real below(real z, real largest) { return z == INFINITE ? (real)0 : z - largest; }

// One row by one warp: the term of the loss, log sum_k e^(z_k) - z_label, and g = (softmax - onehot) share.
__device__ inline real cross_entropy_of(const real* z, int64 label, real* g, int classes, real share) {
    int lane = threadIdx.x % 32;
    real largest = -INFINITE, sum = 0;
    for (int j = lane; j < classes; j += 32) largest = larger(largest, z[j]);
    for (int distance = 16; distance; distance /= 2)
        largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
    for (int j = lane; j < classes; j += 32) sum += exponential(below(z[j], largest));
    sum = warp_sum(sum);
    bool valid = label >= 0 && label < classes;
    if (!valid) sum = NOT_A_NUMBER;  // a wrong label must not train unnoticed
    for (int j = lane; j < classes; j += 32)
        g[j] = (exponential(below(z[j], largest)) / sum - (j == label ? (real)1 : (real)0)) * share;
    return logarithm(sum) - (valid ? below(z[label], largest) : (real)0);
}

struct Batch {
    const real* z;
    const LABEL* labels;
    real* g;
    int64 n, classes;
};
// loss, right: where the numbers go, with the columns of the record, or -1. right is null if nothing counts.
struct Numbers {
    real *loss, *right;
    int64 loss_column, right_column;
};
// The terms and right predictions of the rows that this warp has, stored for each row.
__device__ inline void rows_of(Batch b, real* terms, real* rights, int64 warp, int64 warps) {
    for (int64 row = warp; row < b.n; row += warps) {
        const real* z = b.z + row * b.classes;
        int64 label = b.labels[row];
        real term = cross_entropy_of(z, label, b.g + row * b.classes, b.classes, (real)1 / (real)b.n);
        int best = rights ? predicted(z, b.classes) : 0;
        if (threadIdx.x % 32 == 0) {
            terms[row] = term;
            if (rights) rights[row] = best == label ? (real)1 : (real)0;
        }
    }
}

// The sums over the rows, by one block.
__device__ inline void totals_of(Batch b, const real* terms, const real* rights, Numbers to, Bias bias, Record record,
                                 int64 step) {
    real term = 0, right = 0;
    for (int64 row = threadIdx.x; row < b.n; row += blockDim.x) {
        term += terms[row];
        if (rights) right += rights[row];
    }
    term = block_sum(term);
    if (rights) right = block_sum(right);
    if (threadIdx.x == 0) {
        *to.loss = term / (real)b.n;
        keep(record, step, to.loss_column, *to.loss);
        if (rights) {
            *to.right = right;
            keep(record, step, to.right_column, right);
        }
    }
    add_rows(b.g, b.n, b.classes, bias, step);
}

// A batch that one block can do.
extern "C" __global__ void __launch_bounds__(1024)
cross_entropy(Batch b, real* terms, real* rights, Numbers to, Bias bias, Record record, int64 step) {
    rows_of(b, terms, rights, threadIdx.x / 32, blockDim.x / 32);
    __syncthreads();
    totals_of(b, terms, rights, to, bias, record, step);
}

// A larger batch: the rows by many blocks, then the sums by one.
extern "C" __global__ void cross_entropy_rows(Batch b, real* terms, real* rights) {
    int64 warps = blockDim.x / 32;
    rows_of(b, terms, rights, blockIdx.x * warps + threadIdx.x / 32, gridDim.x * warps);
}
extern "C" __global__ void __launch_bounds__(1024)
cross_entropy_totals(Batch b, const real* terms, const real* rights, Numbers to, Bias bias, Record record, int64 step) {
    totals_of(b, terms, rights, to, bias, record, step);
}

// How many rows have their largest output at the label, by one block.
extern "C" __global__ void __launch_bounds__(1024)
count_right(const real* z, const LABEL* labels, real* right, int64 n, int64 classes) {
    real count = 0;
    for (int64 row = threadIdx.x / 32; row < n; row += blockDim.x / 32) {
        bool hit = predicted(z + row * classes, classes) == labels[row];
        if (hit && threadIdx.x % 32 == 0) count += (real)1;
    }
    count = block_sum(count);
    if (threadIdx.x == 0) *right = count;
}
