// Softmax and its logarithm along the last axis: a warp for each row of x (rows, width).

__device__ inline int64 row_of_warp() { return ((int64)blockIdx.x * blockDim.x + threadIdx.x) / 32; }

// y = e^x / sum e^x, or y = x - log sum e^x if `logarithmic`; the largest x of the row is subtracted first.
extern "C" __global__ void softmax(const real* x, real* y, int64 rows, int64 width, int64 logarithmic) {
    int64 row = row_of_warp(), lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * width, y += row * width;
    real largest = -INFINITE, sum = 0;
    for (int64 j = lane; j < width; j += 32) largest = larger(largest, x[j]);
    largest = warp_max(largest);
    for (int64 j = lane; j < width; j += 32) sum += exponential(x[j] - largest);
    sum = warp_sum(sum);
    real below = logarithm(sum);
    for (int64 j = lane; j < width; j += 32)
        y[j] = logarithmic ? x[j] - largest - below : exponential(x[j] - largest) / sum;
}

// dx = y (dy - sum dy y), or dx = dy - e^y sum dy.
extern "C" __global__ void softmax_gradient(const real* dy, const real* y, real* dx, int64 rows, int64 width,
                                            int64 logarithmic) {
    int64 row = row_of_warp(), lane = threadIdx.x % 32;
    if (row >= rows) return;
    dy += row * width, y += row * width, dx += row * width;
    real sum = 0;
    for (int64 j = lane; j < width; j += 32) sum += logarithmic ? dy[j] : dy[j] * y[j];
    sum = warp_sum(sum);
    for (int64 j = lane; j < width; j += 32)
        dx[j] = logarithmic ? dy[j] - exponential(y[j]) * sum : y[j] * (dy[j] - sum);
}
