// What the kernels share. launch.py puts this file in front of each other source, and defines `real` as float or double.
// In exact numerics it defines EXACT, and puts exact_numbers.cu in front of this file.
// NVRTC compiles without the C library's headers, so there are no INFINITY, NAN and int64_t.
typedef long long int64;
typedef unsigned long long uint64;

#define INFINITE ((real)__int_as_float(0x7f800000))
#define NOT_A_NUMBER ((real)__int_as_float(0x7fffffff))
#define ALL_LANES 0xffffffffu

// How numbers lie in memory, and what kernels compute with: the same type, unless numerics are exact.
#ifndef EXACT
typedef real stored;
__device__ inline real entered(stored x) { return x; }
__device__ inline stored left(real y) { return y; }
// Data of any type as numbers to compute with; the second keeps subnormal numbers in exact numerics.
template <class T> __device__ inline real number_of(T x) { return (real)x; }
template <class T> __device__ inline double unflushed(T x) { return (double)x; }

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float logarithm_of_one_more(float x) { return log1pf(x); }
__device__ inline double logarithm_of_one_more(double x) { return log1p(x); }
__device__ inline float exponential_less_one(float x) { return expm1f(x); }
__device__ inline double exponential_less_one(double x) { return expm1(x); }
__device__ inline float complementary_error(float x) { return erfcf(x); }
__device__ inline double complementary_error(double x) { return erfc(x); }
__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }
__device__ inline float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ inline double hyperbolic_tangent(double x) { return tanh(x); }
#endif
__device__ inline float size_of(float x) { return fabsf(x); }
__device__ inline double size_of(double x) { return fabs(x); }

__device__ inline bool is_nan(real x) { return x != x; }
__device__ inline bool is_finite(real x) { return x - x == 0; }

// The larger of two numbers, or NaN if one of them is NaN, as the Array API's maximum.
__device__ inline real larger(real a, real b) { return a > b || is_nan(a) ? a : b; }

// The sum over the 32 threads of a warp, in each of them. The order is fixed, so every run has the same bits.
template <class T> __device__ inline T warp_sum(T x) {
    for (int distance = 16; distance; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// The largest number of a warp, in each of its threads; of `real` numbers NaN if one of them is NaN.
__device__ inline real warp_max(real x) {
    for (int distance = 16; distance; distance /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}
__device__ inline int warp_max(int x) {
    for (int distance = 16; distance; distance /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// One number of each warp of a block, x of its first thread: that of warp i, in thread i of every warp, and 0 behind the
// last warp. For blocks of whole warps; every thread of the block must call it.
template <class T> static __device__ T of_each_warp(T x) {
    __shared__ T of_warps[32];
    int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    __syncthreads();  // earlier numbers have been read
    if (thread % 32 == 0) of_warps[thread / 32] = x;
    __syncthreads();
    return thread % 32 < warps ? of_warps[thread % 32] : T(0);
}

// The sum over a block of whole warps, in each of its threads. Every thread of the block must call it.
template <class T> __device__ inline T block_sum(T x) { return warp_sum(of_each_warp(warp_sum(x))); }

#ifdef EXACT
// The largest of a block's numbers of at least 0, in each of its threads. For whole warps; every thread must call it.
__device__ inline int block_max(int x) { return warp_max(of_each_warp(warp_max(x))); }
#endif

// Where a step's loss and metrics are kept until the trainer reads them. numbers is null if they are not kept.
//   state: the number of the first step, how many steps were recorded before it, the seed.
struct Record {
    double* numbers;
    const int64* state;
    int64 columns;
};
__device__ inline void keep(Record record, int64 step, int64 column, double value) {
    if (column >= 0) record.numbers[(record.state[1] + step) * record.columns + column] = value;
}

// Stores the gradient of a bias, or takes the step of plain SGD: out = out - learning_rate * sum.
//   minus_rates: for each step, a cell of 8 bytes with -learning_rate; null to store the sum.
__device__ inline void store_sum(stored* out, real sum, const double* minus_rates, int64 step, int64 stride) {
    *out = left(minus_rates ? entered(*out) + *(const real*)(minus_rates + step * stride) * sum : sum);
}

// The last layer's bias, whose gradient is the sum of the rows of g: out is null if it is computed elsewhere.
struct Bias {
    stored* out;
    const double* minus_rates;
    int64 stride;
};
// By one block, a warp for each of `width` columns.
__device__ inline void add_rows(const stored* g, int64 n, int64 width, Bias bias, int64 step) {
    if (!bias.out) return;
    for (int64 j = threadIdx.x / 32; j < width; j += blockDim.x / 32) {
        real sum = 0;
        for (int64 row = threadIdx.x % 32; row < n; row += 32) sum += entered(g[row * width + j]);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) store_sum(bias.out + j, sum, bias.minus_rates, step, bias.stride);
    }
}

// How the terms of a loss are weighed and reduced.
//   weights: of the samples; of_classes: of each class, for the mean and the terms. Null for weights of 1.
//   total: where a kernel has put the divisor; null for the fixed number `divisor`.
struct Weighing {
    const real *weights, *of_classes, *total;
    double divisor;
    __device__ real weight(int64 row) const { return weights ? weights[row] : (real)1; }
    __device__ real over() const { return total ? *total : (real)divisor; }
    // 1 / the divisor; 0 if nothing counts.
    __device__ real share() const { return over() == 0 ? (real)0 : (real)1 / over(); }
    __device__ real divided(real sum) const { return over() == 0 ? (real)0 : sum / over(); }
};

// Activations that other kernels apply to their result, by their numbers in dense_kernels.py.
enum { linear, relu, sigmoid, hyperbolic };

__device__ inline real activated(int64 kind, real z) {
    if (kind == relu) return z > 0 || is_nan(z) ? z : (real)0;
    if (kind == sigmoid) {
        real e = exponential(-size_of(z));
        return (z >= 0 ? (real)1 : e) / (e + (real)1);
    }
    return kind == hyperbolic ? hyperbolic_tangent(z) : z;
}

// dz from dy and the output y.
__device__ inline real slope(int64 kind, real y, real dy) {
    if (kind == relu) return y <= 0 ? (real)0 : dy;
    if (kind == sigmoid) return dy * (y * ((real)1 - y));
    return kind == hyperbolic ? dy * ((real)1 - y * y) : dy;
}

#ifdef EXACT
// f(z) as it is stored. Its value is kept as double in *full, unless full is null or f is `linear`.
__device__ inline stored stored_activation(int64 kind, stored z, double* full) {
    if (kind == linear) return z;
    double value = activated(kind, entered(z));
    if (full) *full = value;
    return left(value);
}
#endif

// Whether output a of class i comes before output b of class j: NaN first, then the larger, then the first class.
__device__ inline bool before(stored a, int i, stored b, int j) {
    if ((a != a) != (b != b)) return a != a;
    return a > b || (!(a < b) && i < j);
}

// The class with the largest output of a row. Every lane of a warp gets it.
__device__ inline int predicted(const stored* z, int classes) {
    int lane = threadIdx.x % 32, best = lane;
    stored top = lane < classes ? z[lane] : -(stored)INFINITE;
    for (int j = lane + 32; j < classes; j += 32)
        if (before(z[j], j, top, best)) { top = z[j]; best = j; }
    for (int distance = 16; distance; distance /= 2) {
        stored other = __shfl_xor_sync(ALL_LANES, top, distance);
        int its = __shfl_xor_sync(ALL_LANES, best, distance);
        if (before(other, its, top, best)) { top = other; best = its; }
    }
    return best;
}

// Whether this block is the last of `blocks` that come here; it then sees what the others have stored before. The counter
// must be 0, and is 0 again afterwards. Every thread of the block must call it.
static __device__ bool is_last(int* counter, int blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        last = atomicAdd(counter, 1) == blocks - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// The four words of one block of a stream of Philox4x64-10, with the bits of backends/random.py. Salmon et al., SC 2011, table 2 and section 3.
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
