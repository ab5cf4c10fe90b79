// The passes of exact numerics between two products: slicing by rows, by columns and of whole tensors, rounding, and the
// steps of weights. Slices and their bits: backends/exact/slices.py. The products of slices are cuBLAS's, in double.

// What happens to the rows of y (n, width). Each part may be absent, as a null pointer or a kind of `linear`:
//   products: y = f(products of first slices + those of second slices + b), or f(products of integers * scale + b). The
//             n rows of second slices lie behind those of the first, if `two`. Without products, y = f(x); x may be y.
//   full:     keeps f's values as double.
//   back:     y is a gradient, and becomes y g'(z); from the forward output `out` of g, or from its double values `of`.
//   wide:     the two slices of each row, of `bits` bits, on the row's own scale: (2 n, width).
struct Rows {
    const double* products;
    const float *b, *x;
    float* y;
    double* full;
    const float* out;
    const double* of;
    double* wide;
    int64 n, width, two, kind, back, bits;
    double scale;
};
__device__ inline double product_of(const Rows& r, int64 i, int64 j) {
    double z = joined(r.products, i, r.n * r.width, r.two, r.scale);
    return r.b ? z + entered(r.b[j]) : z;
}
// A block for each row, or for several.
extern "C" __global__ void __launch_bounds__(1024) rows(Rows r) {
    for (int64 row = blockIdx.x; row < r.n; row += gridDim.x) {
        int field = 0;
        for (int64 j = threadIdx.x; j < r.width; j += blockDim.x) {
            int64 i = row * r.width + j;
            float z = r.products ? left(product_of(r, i, j)) : r.x[i];
            float y = stored_activation(r.kind, z, r.full ? r.full + i : nullptr);
            if (r.back != linear) y = left(slope(r.back, r.of ? r.of[i] : entered(r.out[i]), entered(y)));
            r.y[i] = y;
            field = max(field, exponent_of(entered(y)));
        }
        if (!r.wide) continue;
        field = block_max(field);
        double s = splitter(field, r.bits), t = splitter(field, 2 * r.bits + 1);
        for (int64 j = threadIdx.x; j < r.width; j += blockDim.x) {
            int64 i = row * r.width + j;
            double x = entered(r.y[i]), high = slice(x, s);
            r.wide[i] = high;
            r.wide[i + r.n * r.width] = slice(x - high, t);
        }
    }
}

// An array (n, width), sliced by columns, each on its own scale.
//   wide: one slice (n, width), or two (n, 2 width), the second on the right; null for none. bits: of a slice.
//   sums: the sums of the columns, of terms of sum_bits bits; null for none. With options the sums are taken as a
//         gradient: sums -= learning_rate * gradient. The options of the next step lie `stride` numbers behind.
struct Columns {
    const float* x;
    double* wide;
    float* sums;
    const double* options;
    int64 width, two, bits, sum_bits, stride, blocks;
};
// Blocks of 32 columns and 32 rows at a time, those of the first array and then those of the second.
extern "C" __global__ void __launch_bounds__(1024) columns(Columns first, Columns second, int64 n, int64 step) {
    __shared__ int fields[32][33];
    __shared__ double totals[32][33];
    const Columns& c = blockIdx.x < first.blocks ? first : second;
    int64 j = (blockIdx.x < first.blocks ? blockIdx.x : blockIdx.x - first.blocks) * 32 + threadIdx.x;
    int own = threadIdx.x, field = 0;
    bool inside = j < c.width;
    for (int64 row = threadIdx.y; row < n && inside; row += 32) field = max(field, exponent_of(entered(c.x[row * c.width + j])));
    fields[threadIdx.y][own] = field;
    __syncthreads();
    for (int distance = 16; distance; distance /= 2) {
        if (threadIdx.y < distance) fields[threadIdx.y][own] = max(fields[threadIdx.y][own], fields[threadIdx.y + distance][own]);
        __syncthreads();
    }
    field = fields[0][own];
    double s = splitter(field, c.bits), t = splitter(field, 2 * c.bits + 1), u = splitter(field, c.sum_bits), total = 0.0;
    for (int64 row = threadIdx.y; row < n && inside; row += 32) {
        double x = entered(c.x[row * c.width + j]), high = slice(x, s);
        double* to = c.wide + row * c.width * (c.two ? 2 : 1) + j;
        if (c.wide) to[0] = high;
        if (c.wide && c.two) to[c.width] = slice(x - high, t);
        total += slice(x, u);
    }
    totals[threadIdx.y][own] = total;
    __syncthreads();
    for (int distance = 16; distance; distance /= 2) {
        if (threadIdx.y < distance) totals[threadIdx.y][own] += totals[threadIdx.y + distance][own];
        __syncthreads();
    }
    if (!c.sums || !inside || threadIdx.y) return;
    float sum = left(totals[0][own]);
    c.sums[j] = c.options ? left(entered(c.sums[j]) - c.options[step * c.stride] * (double)sum) : sum;
}

// A part of a tensor that becomes one slice, on the scale of the whole tensor: `blocks` parts from the part `first` on.
struct Part {
    float* w;
    double* one;
    int64 count, first, blocks, bits;
};
extern "C" __global__ void largest_fields(const Part* parts, int* fields) {
    Part p = parts[blockIdx.x];
    int field = 0;
    for (int64 i = threadIdx.x; i < p.count; i += blockDim.x) field = max(field, exponent_of(entered(p.w[i])));
    field = block_max(field);
    if (threadIdx.x == 0) fields[blockIdx.x] = field;
}
extern "C" __global__ void slice_parts(const Part* parts, const int* fields) {
    Part p = parts[blockIdx.x];
    int field = 0;
    for (int64 i = threadIdx.x; i < p.blocks; i += blockDim.x) field = max(field, fields[p.first + i]);
    double s = splitter(block_max(field), p.bits);
    for (int64 i = threadIdx.x; i < p.count; i += blockDim.x) p.one[i] = slice(entered(p.w[i]), s);
}

// A stretch of a weight's gradient, from number `start` on, out of the products of slices (columns of first slices, then
// those of second slices, if `two`) or of integers (times scale). With options w is the weight: w -= learning_rate * gradient.
struct Gradient {
    const double* products;
    float* w;
    const double* options;
    int64 start, count, width, two;
    double scale;
};
extern "C" __global__ void weight_gradients(const Gradient* gradients, int64 stride, int64 step) {
    Gradient g = gradients[blockIdx.x];
    for (int64 i = g.start + threadIdx.x; i < g.start + g.count; i += blockDim.x) {
        int64 at = g.two ? i / g.width * g.width + i : i;
        float sum = left(joined(g.products, at, g.width, g.two, g.scale));
        g.w[i] = g.options ? left(entered(g.w[i]) - g.options[step * stride] * (double)sum) : sum;
    }
}

// Clipping by the norm of all gradients, whose parts are `w` of Part. The largest exponents and the sums of squares:
extern "C" __global__ void square_fields(const Part* parts, int* fields) {
    Part p = parts[blockIdx.x];
    int field = 0;
    for (int64 i = threadIdx.x; i < p.count; i += blockDim.x) field = max(field, exponent_of(entered(p.w[i]) * entered(p.w[i])));
    field = block_max(field);
    if (threadIdx.x == 0) fields[blockIdx.x] = field;
}
extern "C" __global__ void square_sums(const Part* parts, const int* fields, double* sums) {
    Part p = parts[blockIdx.x];
    int field = 0;
    for (int64 i = threadIdx.x; i < p.blocks; i += blockDim.x) field = max(field, fields[p.first + i]);
    double s = splitter(block_max(field), p.bits), sum = 0.0;
    for (int64 i = threadIdx.x; i < p.count; i += blockDim.x) sum += slice(entered(p.w[i]) * entered(p.w[i]), s);
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
// Every block adds the sums of all gradients, one gradient after the other.
extern "C" __global__ void clip_parts(const Part* parts, const double* sums, double limit) {
    __shared__ double factor;
    double total = 0.0;
    for (int64 first = 0; first < gridDim.x; first += parts[first].blocks) {
        double sum = 0.0;
        for (int64 i = threadIdx.x; i < parts[first].blocks; i += blockDim.x) sum += sums[first + i];
        total += block_sum(sum);
    }
    if (threadIdx.x == 0) {
        double norm = root(total), least = limit / (norm + 1e-6);
        factor = !is_finite(norm) ? QUIET_NAN : least < 1.0 ? least : 1.0;
    }
    __syncthreads();
    Part p = parts[blockIdx.x];
    for (int64 i = threadIdx.x; i < p.count; i += blockDim.x) p.w[i] = left(entered(p.w[i]) * factor);
}
