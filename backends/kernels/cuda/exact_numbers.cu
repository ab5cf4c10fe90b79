// The numbers and functions of exact numerics, with the bits of backends/exact/functions.py and slices.py: the same
// operations in the same order. launch.py puts this file in front of common.cu for kernels of exact numerics.
//
// All arithmetic is `+ - * /` and sqrt of double, comparisons, and integers. A GPU rounds these as IEEE 754 says, and has
// no switch that flushes subnormal doubles. launch.py compiles with --fmad=false, so that no multiplication is fused with
// an addition. CuPy compiles with -ftz=true, which flushes subnormal floats: floats are only loaded, stored, converted and
// compared here, and those that are stored are never subnormal. CUDA's exp, log and the like are not used: their last bits
// are its own.
typedef float stored;

#define FLUSH 0x1.8p-73
#define EXP_LIMIT 350.0
#define INVERSE_LN2 1.4426950408889634
#define LN2_HIGH 0.6931471805598903
#define LN2_LOW 5.497923018708371e-14
#define ROUND 0x1.8p52
#define ROUND_BITS 0x4338000000000000ll
#define WHOLE 0x1p52
#define WHOLE_BITS 0x4330000000000000ll
#define ONE_BITS 0x3FF0000000000000ll
#define SQRT_HALF_BITS 0x3FE6A09E667F3BCDll
#define FRACTION_MASK 0x000FFFFFFFFFFFFFll
#define SMALLEST 0x1p-1022
#define QUIET_NAN __longlong_as_double(0x7ff8000000000000ll)
#define UNBOUNDED __longlong_as_double(0x7ff0000000000000ll)
#define FINEST (-500)  // of slices.py, as the next one
#define LARGEST 1900

// From what is stored to what is computed with, and back: without subnormal floats and -0.
__device__ inline double entered(float x) { return ((double)x + FLUSH) - FLUSH; }
__device__ inline float left(double y) { return (float)((y + FLUSH) - FLUSH); }

// Data of any type as numbers to compute with. The second keeps subnormal floats, which a conversion could flush.
template <class T> __device__ inline double number_of(T x) { return (double)x; }
__device__ inline double number_of(float x) { return entered(x); }
template <class T> __device__ inline double unflushed(T x) { return (double)x; }
__device__ inline double unflushed(float x) {
    int bits = __float_as_int(x), fraction = bits & 0x7fffff;
    return bits & 0x7f800000 ? (double)x : (bits < 0 ? -fraction : fraction) * 0x1p-149;
}

// The exponent field of a number: |x| < 2^(field - 1022).
__device__ inline int exponent_of(double x) { return (int)(__double_as_longlong(x) >> 52) & 0x7FF; }

// The constant that rounds numbers to a slice of `bits` bits, if `field` is the largest exponent field among them.
__device__ inline double splitter(int field, int bits) {
    int step = max(field - (1022 + bits), FINEST);
    return field > LARGEST ? QUIET_NAN : __longlong_as_double(((long long)(step + 1075) << 52) | (1ll << 51));
}
__device__ inline double slice(double x, double splitter) { return (x + splitter) - splitter; }

// Number i of a product: that of the first slices plus that of the second ones, which lies `second` numbers behind, if
// `two`; or that of integers times scale.
__device__ inline double joined(const double* products, long long i, long long second, long long two, double scale) {
    return two ? products[i] + products[i + second] : products[i] * scale;
}

// x = n ln 2 + r, for |x| <= EXP_LIMIT. Returns r and 2^n.
__device__ inline double reduced(double x, double* scale) {
    double shifted = x * INVERSE_LN2 + ROUND, n = shifted - ROUND;
    *scale = __longlong_as_double((__double_as_longlong(shifted) - (ROUND_BITS - 1023)) << 52);
    return (x - n * LN2_HIGH) - n * LN2_LOW;
}
// The sum of r^(k - last) / k! for k from `last` to 13.
__device__ inline double taylor(double r, int last) {
    double factorial = 6227020800.0, y = 1.0 / factorial;
#pragma unroll
    for (int k = 13; k > last; --k) {
        factorial /= k;
        y = y * r + 1.0 / factorial;
    }
    return y;
}

__device__ inline double exponential(double x) {
    if (x != x) return QUIET_NAN;
    if (x < -EXP_LIMIT) return 0.0;
    if (x > EXP_LIMIT) return UNBOUNDED;
    double scale, r = reduced(x, &scale);
    return taylor(r, 0) * scale;
}

// e^x - 1
__device__ inline double exponential_less_one(double x) {
    if (x != x) return QUIET_NAN;
    if (x < -EXP_LIMIT) return -1.0;
    if (x > EXP_LIMIT) return UNBOUNDED;
    double scale, r = reduced(x, &scale);
    return r * taylor(r, 1) * scale + (scale - 1.0);
}

// ln x of a positive normal number
__device__ inline double logarithm_inside(double x) {
    long long moved = __double_as_longlong(x) + (ONE_BITS - SQRT_HALF_BITS);
    double k = __longlong_as_double((moved >> 52) | WHOLE_BITS) - (WHOLE + 1023.0);
    double m = __longlong_as_double((moved & FRACTION_MASK) + SQRT_HALF_BITS), s = (m - 1.0) / (m + 1.0);
    double square = s * s, y = 1.0 / 21.0;
#pragma unroll
    for (int n = 19; n > 0; n -= 2) y = y * square + 1.0 / n;
    return k * LN2_HIGH + ((s + s) * y + k * LN2_LOW);
}

__device__ inline double logarithm(double x) {
    if (x != x || x <= -SMALLEST) return QUIET_NAN;
    if (x < SMALLEST) return -UNBOUNDED;
    return x == UNBOUNDED ? x : logarithm_inside(x);
}

// ln(1 + x)
__device__ inline double logarithm_of_one_more(double x) {
    if (x != x || x < -1.0) return QUIET_NAN;
    if (x == -1.0 || x == UNBOUNDED) return x == -1.0 ? -UNBOUNDED : x;
    double u = x + 1.0, step = u - 1.0;
    return step == 0.0 ? x : logarithm_inside(u) * (x / step);
}

__device__ inline double hyperbolic_tangent(double x) {
    if (x != x) return QUIET_NAN;
    double size = fabs(x), t = exponential_less_one((size <= 32.0 ? size : 32.0) * -2.0), y = t / (t + 2.0);
    return x > 0.0 ? -y : y;
}

__device__ inline double root(double x) { return sqrt(x); }

// c_0 r^k + c_1 r^(k - 1) + ... + c_k
template <int count> __device__ inline double polynomial(const double (&c)[count], double r) {
    double y = (c[0] == 1.0 ? r : r * c[0]) + c[1];
#pragma unroll
    for (int k = 2; k < count; ++k) y = y * r + c[k];
    return y;
}

// 1 - erf(x), with the formula and the coefficients of xnn.ops.special.
__device__ inline double complementary_error(double x) {
    const double centre[] = {1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
                             3.20937758913846947e3};
    const double below_centre[] = {1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
                                   2.84423683343917062e3};
    const double shoulder[] = {2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
                               2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
                               1.23033935479799725e3};
    const double below_shoulder[] = {1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
                                     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3,
                                     3.43936767414372164e3, 1.23033935480374942e3};
    const double tail[] = {1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
                           1.60837851487422766e-2, 6.58749161529837803e-4};
    const double below_tail[] = {1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1,
                                 6.05183413124413191e-2, 2.33520497626869185e-3};
    if (x != x) return QUIET_NAN;
    double size = fabs(x);
    if (size <= 0.46875) return 1.0 - x * (polynomial(centre, size * size) / polynomial(below_centre, size * size));
    if (size > 28.0) size = 28.0;
    double scaled = polynomial(shoulder, size) / polynomial(below_shoulder, size);
    if (size > 4.0) {
        double inverse = 1.0 / (size * size);
        scaled = (5.6418958354775628695e-1 - inverse * (polynomial(tail, inverse) / polynomial(below_tail, inverse))) / size;
    }
    double outside = scaled * exponential(-(size * size));
    return x < 0.0 ? 1.0 + (1.0 - outside) : outside;
}
