// Softmax and cross-entropy of logits z (n, classes) and integer labels, with the gradient, the number of right
// predictions, and the gradient of the last bias. LABEL is the type of the labels.

// A logit minus the largest of its row. Infinity minus infinity is 0 here, so that an infinite logit has probability 1.
__device__ inline real below(real z, real largest) { return z == INFINITE ? (real)0 : z - largest; }

// The options of the loss. ignored: a label that is left out, if `ignores`.
struct Options {
    double smoothing;
    int64 ignores, ignored;
};

// One row by one warp: the term of the loss and its gradient, for aims a_j of the classes whose sum is `mass`:
//   mass log sum_k e^(z_k) - sum_j a_j z_j,  g_j = (mass softmax_j - a_j) share
// The aims are 1 at the label and 0 elsewhere, unless there are options or weights of classes.
__device__ inline real cross_entropy_of(const real* z, int64 label, real* g, int classes, real share, Options options,
                                        const real* of_classes) {
    int lane = threadIdx.x % 32;
    if (options.ignores && label == options.ignored) {
        for (int j = lane; j < classes; j += 32) g[j] = 0;
        return 0;
    }
    real largest = -INFINITE, sum = 0;
    for (int j = lane; j < classes; j += 32) largest = larger(largest, z[j]);
    largest = warp_max(largest);
    for (int j = lane; j < classes; j += 32) sum += exponential(below(z[j], largest));
    sum = warp_sum(sum);
    bool valid = label >= 0 && label < classes;
    if (!valid) sum = NOT_A_NUMBER;  // a wrong label must not train unnoticed
    real whole = (real)(1.0 - options.smoothing), part = (real)(options.smoothing / classes), mass = 1, picked = 0;
    auto aim = [&](int j) {
        real a = j == label ? (real)1 : (real)0;
        if (options.smoothing) a = a * whole + part;
        return of_classes ? a * of_classes[j] : a;
    };
    if (options.smoothing || of_classes) {
        mass = 0;
        for (int j = lane; j < classes; j += 32) {
            real a = aim(j);
            mass += a;
            if (a != 0) picked += a * below(z[j], largest);
        }
        mass = warp_sum(mass), picked = warp_sum(picked);
    } else if (valid) {
        picked = below(z[label], largest);
    }
    for (int j = lane; j < classes; j += 32)
        g[j] = (exponential(below(z[j], largest)) / sum * mass - aim(j)) * share;
    return logarithm(sum) * mass - picked;
}

struct Batch {
    const real* z;
    const LABEL* labels;
    real* g;
    int64 n, classes;
    Weighing by;
    Options options;
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
        real *g = b.g + row * b.classes, weight = b.by.weight(row);
        real term = cross_entropy_of(z, label, g, b.classes, b.by.share() * weight, b.options, b.by.of_classes) * weight;
        if (weight == 0) {  // whatever its logits are
            term = 0;
            for (int j = threadIdx.x % 32; j < b.classes; j += 32) g[j] = 0;
        }
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
        *to.loss = b.by.divided(term);
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

// The divisor of the mean, by one block: the sum of the weights of all samples that count, times those of their classes.
extern "C" __global__ void __launch_bounds__(1024)
divisor_of_labels(const LABEL* labels, int64 n, int64 classes, Weighing by, Options options, real* total, Record record,
                  int64 step, int64 column) {
    real sum = 0;
    for (int64 row = threadIdx.x; row < n; row += blockDim.x) {
        int64 label = labels[row];
        bool counts = !(options.ignores && label == options.ignored);
        if ((by.of_classes || options.ignores) && !(label >= 0 && label < classes)) counts = false;
        if (counts) sum += (by.of_classes ? by.of_classes[label] : (real)1) * by.weight(row);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *total = sum;
        keep(record, step, column, sum);
    }
}
