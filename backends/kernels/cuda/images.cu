// Convolution of images: the windows as a matrix, its adjoint, and the order of axes around the products, which are
// cuBLAS's. Then pooling: the largest element or the mean of each window, and their gradients.

// The windows along one axis, as xnn.ops.windows.Windows.
struct Windows {
    int64 extent, kernel, stride, dilation, before, number;
};
// n images of `channels` planes. The matrix of windows has a row for each channel and element of a window, and a column
// for each image and window.
struct Images {
    int64 n, channels;
    Windows rows, columns;
};

// The number of the window whose element e is at this position, or -1.
__device__ inline int64 window_at(int64 position, int64 e, Windows w) {
    int64 begin = position + w.before - e * w.dilation;
    return begin < 0 || begin % w.stride || begin / w.stride >= w.number ? -1 : begin / w.stride;
}

// The place in the images of a number of the matrix: of channel and element `line` of window (u, v); -1 outside the image.
__device__ inline int64 pixel_of(const Images& s, int64 image, unsigned u, unsigned v, unsigned line) {
    unsigned height = s.rows.kernel, across = s.columns.kernel;
    int64 row = u * s.rows.stride + line / across % height * s.rows.dilation - s.rows.before;
    int64 column = v * s.columns.stride + line % across * s.columns.dilation - s.columns.before;
    bool inside = row >= 0 && row < s.rows.extent && column >= 0 && column < s.columns.extent;
    int64 plane = image * s.channels + line / across / height;
    return inside ? (plane * s.rows.extent + row) * s.columns.extent + column : -1;
}

// The sum over all windows that contain the element (row, column) of an image, first within a window's row:
// term(e, f, u, v) of element (e, f) of window (u, v).
template <class F>
__device__ inline real sum_over_windows(unsigned row, unsigned column, const Windows& rows, const Windows& columns, F term) {
    real total = 0;
    for (int64 e = 0; e < rows.kernel; ++e) {
        int64 u = window_at(row, e, rows);
        real sum = 0;
        for (int64 f = 0; u >= 0 && f < columns.kernel; ++f) {
            int64 v = window_at(column, f, columns);
            if (v >= 0) sum += term(e, f, u, v);
        }
        total += sum;
    }
    return total;
}

// matrix[channel and element][image and window] = x, or 0 outside the image. Blocks: columns x rows of the matrix.
extern "C" __global__ void unfold(const real* x, real* matrix, Images s) {
    unsigned places = s.n * s.rows.number * s.columns.number, place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= places) return;
    unsigned width = s.columns.number, v = place % width, u = place / width % (unsigned)s.rows.number;
    int64 image = place / width / (unsigned)s.rows.number;
    unsigned lines = s.channels * s.rows.kernel * s.columns.kernel;
    for (unsigned line = blockIdx.y; line < lines; line += gridDim.y) {
        int64 pixel = pixel_of(s, image, u, v, line);
        matrix[(int64)line * places + place] = pixel < 0 ? (real)0 : x[pixel];
    }
}

// The adjoint: for each element of the images the sum over all windows that contain it.
extern "C" __global__ void fold(const real* matrix, real* dx, Images s, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned column = i % (unsigned)s.columns.extent, row = i / (unsigned)s.columns.extent % (unsigned)s.rows.extent;
    unsigned plane = i / (unsigned)s.columns.extent / (unsigned)s.rows.extent;
    int64 image = plane / (unsigned)s.channels, channel = plane % (unsigned)s.channels;
    int64 places = s.n * s.rows.number * s.columns.number;
    dx[i] = sum_over_windows(row, column, s.rows, s.columns, [&](int64 e, int64 f, int64 u, int64 v) {
        int64 line = (channel * s.rows.kernel + e) * s.columns.kernel + f;
        return matrix[line * places + (image * s.rows.number + u) * s.columns.number + v];
    });
}

// y (n, outputs, places) = f(z + b) from the product z (outputs, n places). b may be null.
extern "C" __global__ void to_images(const real* z, const real* b, real* y, int64 n, int64 outputs, int64 places, int64 kind) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n * outputs * places) return;
    unsigned place = i % (unsigned)places, output = i / (unsigned)places % (unsigned)outputs;
    int64 image = i / (unsigned)places / (unsigned)outputs;
    real v = z[(output * n + image) * places + place];
    y[i] = activated(kind, b ? v + b[output] : v);
}

// dz (outputs, n places) = dy f'(z) from dy and y (n, outputs, places), and db, the sums of its rows. db may be null.
// Blocks: outputs x parts of `each` columns. The sums of the parts are added in their order by the last block.
extern "C" __global__ void from_images(const real* dy, const real* y, real* dz, real* db, int64 n, int64 outputs,
                                       int64 places, int64 kind, int64 each, real* parts, int* counters) {
    int64 output = blockIdx.x, first = blockIdx.y * each, end = min(n * places, first + each);
    real sum = 0;
    for (int64 j = first + threadIdx.x; j < end; j += blockDim.x) {
        int64 i = (j / places * outputs + output) * places + j % places;
        real d = kind == linear ? dy[i] : slope(kind, y[i], dy[i]);
        dz[output * n * places + j] = d;
        sum += d;
    }
    if (!db) return;
    sum = block_sum(sum);
    if (gridDim.y > 1) {
        if (threadIdx.x == 0) parts[output * gridDim.y + blockIdx.y] = sum;
        if (!is_last(counters + output, gridDim.y)) return;
        const volatile real* stored = parts + output * gridDim.y;
        sum = 0;
        for (unsigned part = threadIdx.x; part < gridDim.y; part += blockDim.x) sum += stored[part];
        sum = block_sum(sum);
    }
    if (threadIdx.x == 0) db[output] = sum;
}

// The largest element of each window, or its first NaN, and the element's place in its plane. A thread for each window.
extern "C" __global__ void largest(const stored* x, stored* y, int* chosen, Windows rows, Windows columns, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned v = i % (unsigned)columns.number, u = i / (unsigned)columns.number % (unsigned)rows.number;
    int64 plane = i / (unsigned)columns.number / (unsigned)rows.number;
    const stored* image = x + plane * rows.extent * columns.extent;
    real best = 0;
    int place = -1;
    for (int64 e = 0; e < rows.kernel; ++e)
        for (int64 f = 0; f < columns.kernel; ++f) {
            int64 row = u * rows.stride + e * rows.dilation - rows.before;
            int64 column = v * columns.stride + f * columns.dilation - columns.before;
            if (row < 0 || row >= rows.extent || column < 0 || column >= columns.extent) continue;
            real value = entered(image[row * columns.extent + column]);
            if (place >= 0 && !(value > best || (is_nan(value) && !is_nan(best)))) continue;
            best = value;
            place = row * columns.extent + column;
        }
    y[i] = left(best);
    chosen[i] = place;
}

// The mean of each window, where elements outside the image count as 0.
extern "C" __global__ void mean(const stored* x, stored* y, Windows rows, Windows columns, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned v = i % (unsigned)columns.number, u = i / (unsigned)columns.number % (unsigned)rows.number;
    int64 plane = i / (unsigned)columns.number / (unsigned)rows.number;
    real sum = 0;
    for (int64 e = 0; e < rows.kernel; ++e)
        for (int64 f = 0; f < columns.kernel; ++f) {
            int64 row = u * rows.stride + e - rows.before, column = v * columns.stride + f - columns.before;
            bool inside = row >= 0 && row < rows.extent && column >= 0 && column < columns.extent;
            if (inside) sum += entered(x[(plane * rows.extent + row) * columns.extent + column]);
        }
    y[i] = left(sum / (real)(rows.kernel * columns.kernel));
}

// dx: for each element of the images the sum over the windows that contain it: of dy where it was chosen, or, if `chosen`
// is null, of dy divided by the number of elements.
extern "C" __global__ void pool_gradient(const stored* dy, const int* chosen, stored* dx, Windows rows, Windows columns,
                                         int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned column = i % (unsigned)columns.extent, row = i / (unsigned)columns.extent % (unsigned)rows.extent;
    int64 plane = i / (unsigned)columns.extent / (unsigned)rows.extent;
    int place = row * columns.extent + column;
    dx[i] = left(sum_over_windows(row, column, rows, columns, [&](int64, int64, int64 u, int64 v) {
        int64 at = (plane * rows.number + u) * columns.number + v;
        if (!chosen) return entered(dy[at]) / (real)(rows.kernel * columns.kernel);
        return chosen[at] == place ? entered(dy[at]) : (real)0;
    }));
}

// The mean of each of the rows of x (rows, width). A block for each row.
extern "C" __global__ void row_means(const real* x, real* y, int64 width) {
    real sum = 0;
    for (int64 j = threadIdx.x; j < width; j += blockDim.x) sum += x[blockIdx.x * width + j];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum / (real)width;
}

// The means of x (outer, width, inner) over its middle axis. A thread for each of them.
extern "C" __global__ void middle_means(const real* x, real* y, int64 width, int64 inner, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    double sum = 0;
    for (int64 j = 0; j < width; ++j) sum += x[(i / (unsigned)inner * width + j) * inner + i % (unsigned)inner];
    y[i] = (real)(sum / (double)width);
}

// The gradient of both.
extern "C" __global__ void means_gradient(const real* dy, real* dx, int64 width, int64 inner, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) dx[i] = dy[i / (unsigned)inner / (unsigned)width * inner + i % (unsigned)inner] / (real)width;
}
