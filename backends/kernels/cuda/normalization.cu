// Means and variances, normalization by them, their gradients, and running statistics. Formulas are those of
// xnn.ops.normalization; `scale` is the power of two that keeps squares within the range of numbers.
//
// An array is seen as (outer, groups, inner), and a group has a mean and a variance: in batch normalization a channel,
// (n, channels, places), in layer normalization a sample, (1, samples, features).
//   of: an element of group g is number e = 0 .. outer inner - 1 of it.
struct Groups {
    int64 outer, groups, inner;
    __device__ int64 size() const { return outer * inner; }
    __device__ int64 of(int64 g, int64 e) const { return (e / inner * groups + g) * inner + e % inner; }
    __device__ int64 at(int64 i) const { return i / inner % groups; }
};
// The weight and the bias of element i have the number i / inner % count.
struct Affine {
    const real *weight, *bias;
    int64 inner, count;
    __device__ int64 at(int64 i) const { return i / inner % count; }
};

#define SMALL ((real)8.881784197001252e-16)
#define LARGE ((real)1.125899906842624e15)

__device__ inline real scale_of(real largest) {
    if (largest > LARGE) return (real)8.271806125530277e-25;
    return largest < SMALL && largest > 0 ? (real)1.2676506002282294e30 : (real)1;
}

// The sum or, if `most`, the largest number of a block of whole warps, in all of its threads.
static __device__ real of_block(real x, bool most) {
    __shared__ real of_warps[32];
    for (int distance = 16; distance; distance /= 2) {
        real other = __shfl_xor_sync(ALL_LANES, x, distance);
        x = most ? larger(x, other) : x + other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    real all = of_warps[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) all = most ? larger(all, of_warps[warp]) : all + of_warps[warp];
    return all;
}

// moments (rows, groups): means, variances, and if rows == 3 the scales by whose square the variances are multiplied.
// Blocks: groups x parts of `each` elements. A part keeps its mean, the sum of the squares of the distances from it, and
// the size of the largest number; the last block of a group joins them. parts (groups, parts, 3); counters are 0.
extern "C" __global__ void moments(const real* x, real* moments, int64 rows, Groups s, int64 each, real* parts, int* counters) {
    int64 g = blockIdx.x, first = blockIdx.y * each, end = min(s.size(), first + each);
    real largest = 0, sum = 0, square = 0;
    for (int64 e = first + threadIdx.x; e < end; e += blockDim.x) largest = larger(size_of(x[s.of(g, e)]), largest);
    largest = of_block(largest, true);
    real scale = scale_of(largest);
    for (int64 e = first + threadIdx.x; e < end; e += blockDim.x) sum += x[s.of(g, e)] * scale;
    real mean = of_block(sum, false) / (real)(end - first);
    for (int64 e = first + threadIdx.x; e < end; e += blockDim.x) {
        real away = x[s.of(g, e)] * scale - mean;
        square += away * away;
    }
    square = of_block(square, false);
    if (gridDim.y > 1) {
        real* part = parts + (g * gridDim.y + blockIdx.y) * 3;
        if (threadIdx.x == 0) part[0] = mean, part[1] = square, part[2] = largest;
        if (!is_last(counters + g, gridDim.y)) return;
        const volatile real* stored = parts + g * gridDim.y * 3;
        largest = sum = square = 0;
        for (unsigned p = threadIdx.x; p < gridDim.y; p += blockDim.x) largest = larger(stored[p * 3 + 2], largest);
        scale = scale_of(of_block(largest, true));
        for (unsigned p = threadIdx.x; p < gridDim.y; p += blockDim.x)
            sum += (real)(min(s.size(), (p + 1) * each) - p * each) * (stored[p * 3] * (scale / scale_of(stored[p * 3 + 2])));
        mean = of_block(sum, false) / (real)s.size();
        for (unsigned p = threadIdx.x; p < gridDim.y; p += blockDim.x) {
            real ratio = scale / scale_of(stored[p * 3 + 2]), away = stored[p * 3] * ratio - mean;
            square += stored[p * 3 + 1] * ratio * ratio + (real)(min(s.size(), (p + 1) * each) - p * each) * (away * away);
        }
        square = of_block(square, false);
    }
    if (threadIdx.x) return;
    real variance = square / (real)s.size();
    moments[g] = mean / scale;
    moments[s.groups + g] = rows == 3 ? variance : variance / scale / scale;
    if (rows == 3) moments[2 * s.groups + g] = scale;
}

// What an element's group has: z = (x scale - mean scale) root.
struct Measure {
    real mean, root, scale;
    __device__ real away(real x) const { return scale == 1 ? x - mean : x * scale - mean * scale; }
};
__device__ inline Measure measure(const real* moments, int64 rows, int64 groups, int64 g, double epsilon) {
    real variance = moments[groups + g], scale = rows == 3 ? moments[2 * groups + g] : (real)1;
    if (scale == 1) return {moments[g], (real)1 / root(variance + (real)epsilon), scale};
    real a = root(variance), b = root((real)epsilon) * scale, most = larger(a, b);
    real ratio = (a < b || is_nan(a) ? a : b) / most;
    return {moments[g], (real)1 / (most * root((real)1 + ratio * ratio)), scale};
}

// y = f(z weight + bias).
extern "C" __global__ void normalize(const real* x, const real* moments, real* y, int64 size, int64 rows, Groups s,
                                     Affine affine, double epsilon, int64 kind) {
    int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    Measure m = measure(moments, rows, s.groups, s.at(i), epsilon);
    real z = m.away(x[i]) * m.root;
    int64 p = affine.at(i);
    y[i] = activated(kind, affine.weight ? z * affine.weight[p] + affine.bias[p] : z);
}

// For each group the sums of g and g z, with g = dy f'. `inside`: whether the weight differs within a group; g is then
// multiplied by it. Otherwise these sums are the gradients of bias and weight, which may be null. sums (2, groups).
// Blocks and parts (groups, parts, 2) as for `moments`.
extern "C" __global__ void gradient_sums(const real* dy, const real* x, const real* y, const real* moments, real* sums,
                                         real* dweight, real* dbias, int64 rows, Groups s, Affine affine, int64 inside,
                                         double epsilon, int64 kind, int64 each, real* parts, int* counters) {
    int64 g = blockIdx.x, first = blockIdx.y * each, end = min(s.size(), first + each);
    Measure m = measure(moments, rows, s.groups, g, epsilon);
    real plain = 0, along = 0;
    for (int64 e = first + threadIdx.x; e < end; e += blockDim.x) {
        int64 i = s.of(g, e);
        real d = kind == linear ? dy[i] : slope(kind, y[i], dy[i]);
        if (inside && affine.weight) d *= affine.weight[affine.at(i)];
        plain += d;
        along += d * (m.away(x[i]) * m.root);
    }
    plain = of_block(plain, false);
    along = of_block(along, false);
    if (gridDim.y > 1) {
        real* part = parts + (g * gridDim.y + blockIdx.y) * 2;
        if (threadIdx.x == 0) part[0] = plain, part[1] = along;
        if (!is_last(counters + g, gridDim.y)) return;
        const volatile real* stored = parts + g * gridDim.y * 2;
        plain = along = 0;
        for (unsigned p = threadIdx.x; p < gridDim.y; p += blockDim.x) plain += stored[p * 2], along += stored[p * 2 + 1];
        plain = of_block(plain, false);
        along = of_block(along, false);
    }
    if (threadIdx.x) return;
    sums[g] = plain;
    sums[s.groups + g] = along;
    if (!inside && dbias) dbias[g] = plain;
    if (!inside && dweight) dweight[g] = along;
}

// dx through the element itself, the mean and the variance.
extern "C" __global__ void gradient(const real* dy, const real* x, const real* y, const real* moments, const real* sums,
                                    real* dx, int64 size, int64 rows, Groups s, Affine affine, int64 inside,
                                    double epsilon, int64 kind) {
    int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    int64 g = s.at(i);
    Measure m = measure(moments, rows, s.groups, g, epsilon);
    real weight = affine.weight ? affine.weight[affine.at(i)] : (real)1, of_sums = inside ? (real)1 : weight;
    real d = (kind == linear ? dy[i] : slope(kind, y[i], dy[i])) * weight, n = (real)s.size();
    real along = sums[s.groups + g] * of_sums, slope_of_mean = -(sums[g] * of_sums * (m.root * m.scale));
    real slope_of_variance = along * (m.root * m.root) * (real)-0.5;
    dx[i] = d * (m.root * m.scale) + (slope_of_mean / n + m.away(x[i]) * (slope_of_variance * ((real)2 / n * m.scale)));
}

// The gradients of weight and bias that differ within a group: for each of `width` features the sums over the samples.
// Blocks of (32, 32) threads: 32 features x `each` samples. parts (blocks of samples, 2, width).
extern "C" __global__ void __launch_bounds__(1024)
feature_sums(const real* dy, const real* x, const real* y, const real* moments, real* dweight, real* dbias, int64 rows,
             int64 samples, int64 width, double epsilon, int64 kind, int64 each, real* parts, int* counters) {
    __shared__ real tile[2][32][33];
    int64 feature = (int64)blockIdx.x * 32 + threadIdx.x, first = blockIdx.y * each, end = min(samples, first + each);
    real plain = 0, along = 0;
    if (feature < width)
        for (int64 g = first + threadIdx.y; g < end; g += 32) {
            int64 i = g * width + feature;
            Measure m = measure(moments, rows, samples, g, epsilon);
            real d = kind == linear ? dy[i] : slope(kind, y[i], dy[i]);
            plain += d;
            along += d * (m.away(x[i]) * m.root);
        }
    tile[0][threadIdx.y][threadIdx.x] = plain;
    tile[1][threadIdx.y][threadIdx.x] = along;
    __syncthreads();
    plain = warp_sum(tile[0][threadIdx.x][threadIdx.y]);  // a warp for each feature
    along = warp_sum(tile[1][threadIdx.x][threadIdx.y]);
    feature = (int64)blockIdx.x * 32 + threadIdx.y;
    bool writes = threadIdx.x == 0 && feature < width;
    if (gridDim.y > 1) {
        if (writes) parts[blockIdx.y * 2 * width + feature] = plain, parts[(blockIdx.y * 2 + 1) * width + feature] = along;
        if (!is_last(counters + blockIdx.x, gridDim.y)) return;
        const volatile real* stored = parts;
        plain = along = 0;
        if (feature < width)
            for (unsigned p = threadIdx.x; p < gridDim.y; p += 32)
                plain += stored[p * 2 * width + feature], along += stored[(p * 2 + 1) * width + feature];
        plain = warp_sum(plain);
        along = warp_sum(along);
    }
    if (writes && dbias) dbias[feature] = plain;
    if (writes && dweight) dweight[feature] = along;
}

// Running statistics: running = (1 - momentum) running + momentum new. A block for each layer.
//   rate: momentum; of_variance: momentum n / (n - 1), or -1 if there is no unbiased variance.
struct Running {
    real *mean, *variance;
    const real* moments;
    int64 rows, groups;
    double rate, of_variance;
};
extern "C" __global__ void running_moments(const Running* layers) {
    Running r = layers[blockIdx.x];
    for (int64 g = threadIdx.x; g < r.groups; g += blockDim.x) {
        r.mean[g] = (real)(1.0 - r.rate) * r.mean[g] + (real)r.rate * r.moments[g];
        real variance = r.moments[r.groups + g];
        if (r.rows == 3) variance = variance / r.moments[2 * r.groups + g] / r.moments[2 * r.groups + g];
        if (r.of_variance >= 0) r.variance[g] = (real)(1.0 - r.rate) * r.variance[g] + (real)r.of_variance * variance;
    }
}
