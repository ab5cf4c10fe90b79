// A dense layer's bias and activation, and their gradients. The products are cuBLAS's.
// y = f(z + b). z may be y. b is null if there is no bias.
extern "C" __global__ void activate(const real* z, real* y, const real* b, int64 size, int64 width, int64 kind) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = activated(kind, b ? z[i] + b[i % (unsigned)width] : z[i]);
}

// dz = dy f'(z), from the output y. dz may be dy.
extern "C" __global__ void deactivate(const real* dy, const real* y, real* dz, int64 size, int64 kind) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) dz[i] = slope(kind, y[i], dy[i]);
}

// dz = dy f'(z) in place of dy, and the sum of its rows: the gradient of the bias, or the bias's step (store_sum).
// Blocks of (32, 32) threads: 32 columns, `rows` rows. Several blocks of rows store their sums in `parts`.
extern "C" __global__ void __launch_bounds__(1024)
gradient_and_sums(real* __restrict__ dy, const real* __restrict__ y, int64 n, int64 width, int64 kind,
                  int64 rows, real* parts, Bias bias, int64 step) {
    __shared__ real part[32][33];
    int64 column = (int64)blockIdx.x * 32 + threadIdx.x, first = blockIdx.y * rows, end = min(n, first + rows);
    real sum = 0;
    if (column < width)
        for (int64 row = first + threadIdx.y; row < end; row += 32) {
            int64 i = row * width + column;
            real dz = kind == linear ? dy[i] : slope(kind, y[i], dy[i]);
            if (kind != linear) dy[i] = dz;
            sum += dz;
        }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(part[threadIdx.x][threadIdx.y]);  // a warp for each column
    column = (int64)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x || column >= width) return;
    if (gridDim.y > 1) parts[blockIdx.y * width + column] = sum;
    else store_sum(bias.out + column, sum, bias.minus_rates, step, bias.stride);
}

// The sums of the sums that blocks have stored: a thread for each column.
extern "C" __global__ void add_parts(const real* parts, int64 blocks, int64 width, Bias bias, int64 step) {
    int64 column = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    real sum = 0;
    for (int64 block = 0; block < blocks; ++block) sum += parts[block * width + column];
    store_sum(bias.out + column, sum, bias.minus_rates, step, bias.stride);
}

// The sum of two gradients.
extern "C" __global__ void add(const stored* a, const stored* b, stored* out, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = left(entered(a[i]) + entered(b[i]));
}
