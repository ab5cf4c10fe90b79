// Losses whose terms belong to one output and one target each: the mean of the terms, and the gradient.
enum { squared, absolute, huber, hinge, binary_cross_entropy };

// delta: Huber's. more: the weight of targets of 1, less 1, in binary cross-entropy. The slope is the term's derivative by
// the output p.
__device__ inline real term_of(int64 kind, real p, real t, real delta, real more, real* slope) {
    real d = p - t;
    if (kind == squared) {
        *slope = d * (real)2;
        return d * d;
    }
    if (kind == absolute) {
        *slope = is_nan(d) ? d : (real)((d > 0) - (d < 0));
        return size_of(d);
    }
    if (kind == huber) {
        real clipped = d > delta ? delta : d < -delta ? -delta : d;
        *slope = clipped;
        return clipped * (d - (real)0.5 * clipped);
    }
    if (kind == hinge) {
        real shortage = (real)1 - p * t;
        *slope = shortage <= 0 ? (real)0 : -t;
        return larger(shortage, 0);
    }
    // Binary cross-entropy of a logit p; of an infinite one, the limit: 0 if the target agrees, else infinity.
    bool far = p == INFINITE || p == -INFINITE;
    real near = !far ? p : p > 0 ? (real)1 : (real)-1, e = exponential(-size_of(p)), rest = e + (real)1;
    *slope = (p >= 0 ? (real)1 : e) / rest - t;
    real doubt = larger(near, 0) - near * t, curve = logarithm_of_one_more(exponential(-size_of(near))), extra = 0;
    if (more != 0) {
        *slope -= more * t * ((p >= 0 ? e : (real)1) / rest);
        extra = more * t * (larger(-near, 0) + curve);
        if (!(near > 0)) doubt *= more + (real)1;
    }
    if (far) return doubt > 0 ? INFINITE : doubt;
    return larger(near, 0) - near * t + curve + extra;
}

// positive: the weight of targets of 1, for each of `positives` outputs, or null.
struct Batch {
    const stored *p, *t;
    stored* g;
    int64 n, width, kind;
    double delta;
    Weighing by;
    const real* positive;
    int64 positives;
};

// The sum of the terms that this thread has, of `threads`.
__device__ inline real terms_of(Batch b, int64 thread, int64 threads) {
    int64 size = b.n * b.width;
    real sum = 0, slope, share = b.by.share();
    for (int64 i = thread; i < size; i += threads) {
        real more = b.positive ? b.positive[i % b.positives] - (real)1 : (real)0, weight = b.by.weight(i / b.width);
        real term = term_of(b.kind, entered(b.p[i]), entered(b.t[i]), (real)b.delta, more, &slope);
        b.g[i] = left(weight == 0 ? (real)0 : slope * (share * weight));
        if (weight != 0) sum += term * weight;
    }
    return sum;
}

__device__ inline void finish(Batch b, real sum, stored* loss, int64 column, Bias bias, Record record, int64 step) {
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *loss = left(b.by.divided(sum));
        keep(record, step, column, *loss);
    }
    add_rows(b.g, b.n, b.width, bias, step);
}

// A batch that one block can do. A block's barrier, in block_sum, is before the rows of g are added.
extern "C" __global__ void __launch_bounds__(1024)
distance(Batch b, real* sums, stored* loss, int64 column, Bias bias, Record record, int64 step) {
    finish(b, terms_of(b, threadIdx.x, blockDim.x), loss, column, bias, record, step);
}

// A larger batch: a sum for each block, then the sum of these by one block.
extern "C" __global__ void distance_sums(Batch b, real* sums) {
    real sum = block_sum(terms_of(b, (int64)blockIdx.x * blockDim.x + threadIdx.x, (int64)gridDim.x * blockDim.x));
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
extern "C" __global__ void __launch_bounds__(1024)
distance_total(Batch b, const real* sums, int64 blocks, stored* loss, int64 column, Bias bias, Record record, int64 step) {
    finish(b, threadIdx.x < blocks ? sums[threadIdx.x] : (real)0, loss, column, bias, record, step);
}

// The divisor of the mean, by one block: the sum of the weights of the samples, each of which has `width` terms.
extern "C" __global__ void __launch_bounds__(1024)
divisor_of_weights(const real* weights, int64 n, int64 width, real* total, Record record, int64 step, int64 column) {
    real sum = 0;
    for (int64 row = threadIdx.x; row < n; row += blockDim.x) sum += weights[row];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *total = sum * (real)width;
        keep(record, step, column, *total);
    }
}
