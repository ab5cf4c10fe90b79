// Activations whose derivative is computed from their input x. Formulas and limits are those of xnn.ops.activations.
enum { leaky_relu, elu, selu, gelu, gelu_tanh, silu, softplus };

#define ROOT_HALF ((real)0.7071067811865476)
#define ROOT_2_OVER_PI ((real)0.7978845608028654)
#define FLAT ((real)40)  // for |x| > FLAT, e^(-x^2 / 2) is 0
#define LOGISTIC_FLAT ((real)60)
#define LOGISTIC_ZERO ((real)-800)
#define SELU_SCALE ((real)1.0507009873554804934)
#define SELU_ALPHA 1.6732632423543772848

__device__ inline real smaller(real a, real b) { return a < b || is_nan(a) ? a : b; }

__device__ inline real logistic(real x) {
    real e = exponential(-size_of(x));
    return (x >= 0 ? (real)1 : e) / ((real)1 + e);
}

// beta x, without an overflow where e^-|beta x| is 0.
__device__ inline real times(real x, double beta) {
    if (beta == 1.0) return x;
    real end = (real)(800.0 / beta);
    return larger(smaller(x, end), -end) * (real)beta;
}

// The normal distribution function for GELU, by its kind, at an x of at least -FLAT; rest is 1 minus it.
__device__ inline real share_of(int64 kind, real low, real* rest) {
    if (kind == gelu) return (real)0.5 * complementary_error(low * -ROOT_HALF);
    real x = smaller(low, FLAT), u = ROOT_2_OVER_PI * (x + (real)0.044715 * (x * x * x));
    real e = exponential(smaller((real)2 * u, LOGISTIC_FLAT));
    *rest = (real)1 / ((real)1 + e);
    return e / ((real)1 + e);
}

// f(v). option: the slope, alpha or beta.
__device__ inline real curve_at(real v, int64 kind, double option) {
    real below_0 = smaller(v, 0), rest;
    if (kind == leaky_relu) return larger(v, 0) + (real)option * below_0;
    if (kind == elu) return v > 0 ? v : (real)option * exponential_less_one(below_0);
    if (kind == selu) return SELU_SCALE * (v > 0 ? v : (real)SELU_ALPHA * exponential_less_one(below_0));
    if (kind == gelu || kind == gelu_tanh) {
        real low = larger(v, -FLAT);
        return low * share_of(kind, low, &rest);
    }
    if (kind == silu) return larger(v, LOGISTIC_ZERO) * logistic(v);
    return larger(v, 0) + logarithm_of_one_more(exponential(-size_of(times(v, option)))) / (real)option;
}

// d f'(v), of the same options.
__device__ inline real curve_slope(real v, real d, int64 kind, double option) {
    real below_0 = smaller(v, 0), rest;
    if (kind == leaky_relu) return v <= 0 ? d * (real)option : d;
    if (kind == elu) return v > 0 ? d : d * ((real)option * exponential(below_0));
    if (kind == selu) return v > 0 ? SELU_SCALE * d : SELU_SCALE * d * ((real)SELU_ALPHA * exponential(below_0));
    if (kind == gelu || kind == gelu_tanh) {
        real low = larger(v, -FLAT), share = share_of(kind, low, &rest), inside = smaller(low, FLAT), square = inside * inside;
        real density = kind == gelu
            ? (real)0.5 * ROOT_2_OVER_PI * exponential((real)-0.5 * square)
            : (real)2 * share * rest * (ROOT_2_OVER_PI * ((real)1 + (real)0.134145 * square));
        return d * (share + inside * density);
    }
    if (kind == silu) {
        real s = logistic(v), y = larger(v, LOGISTIC_ZERO) * s;
        return d * (s + smaller(y, LOGISTIC_FLAT) * ((real)1 - s));
    }
    return d * logistic(times(v, option));
}

// y = f(x).
extern "C" __global__ void curve(const stored* x, stored* y, int64 size, int64 kind, double option) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = left(curve_at(entered(x[i]), kind, option));
}

// dx = dy f'(x).
extern "C" __global__ void curve_gradient(const stored* dy, const stored* x, stored* dx, int64 size, int64 kind, double option) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) dx[i] = left(curve_slope(entered(x[i]), entered(dy[i]), kind, option));
}
