// Convolution in exact numerics: the windows as the rows of a matrix, and the order of axes around the products of slices.
// images.cu stands in front of this file. SOURCE is the type of the images, TARGET that of the matrix: float for both, or
// an integer and double.

// matrix[image and window][channel and element] = x, or 0 outside the image. A thread for each number of the matrix.
extern "C" __global__ void unfold_rows(const SOURCE* x, TARGET* matrix, Images s, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned lines = s.channels * s.rows.kernel * s.columns.kernel;
    unsigned place = i / lines, width = s.columns.number, height = s.rows.number;
    int64 pixel = pixel_of(s, place / width / height, place / width % height, place % width, i % lines);
    matrix[i] = pixel < 0 ? (TARGET)0 : (TARGET)x[pixel];
}

// dx: for each element of the images the sum of the products of slices of all windows that contain it.
// matrix: (2 n windows, channels and elements), the products of second slices behind those of the first.
extern "C" __global__ void fold_rows(const double* matrix, float* dx, Images s, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned column = i % (unsigned)s.columns.extent, row = i / (unsigned)s.columns.extent % (unsigned)s.rows.extent;
    unsigned plane = i / (unsigned)s.columns.extent / (unsigned)s.rows.extent;
    int64 image = plane / (unsigned)s.channels, channel = plane % (unsigned)s.channels;
    int64 lines = s.channels * s.rows.kernel * s.columns.kernel, second = s.n * s.rows.number * s.columns.number * lines;
    dx[i] = left(sum_over_windows(row, column, s.rows, s.columns, [&](int64 e, int64 f, int64 u, int64 v) {
        int64 line = (channel * s.rows.kernel + e) * s.columns.kernel + f;
        int64 at = ((image * s.rows.number + u) * s.columns.number + v) * lines + line;
        return matrix[at] + matrix[at + second];
    }));
}

// y (n, outputs, places) = f(z + b) from the products z (n places, outputs) of slices: the sum of two, if `two`, or one
// times scale. full keeps f's values as double. b and full may be null.
extern "C" __global__ void products_to_images(const double* z, const float* b, float* y, double* full, int64 n, int64 outputs,
                                              int64 places, int64 kind, int64 two, double scale) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    int64 size = n * outputs * places;
    if (i >= size) return;
    unsigned place = i % (unsigned)places, output = i / (unsigned)places % (unsigned)outputs;
    int64 at = (i / (unsigned)places / (unsigned)outputs * places + place) * outputs + output;
    double value = joined(z, at, size, two, scale);
    y[i] = stored_activation(kind, left(b ? value + entered(b[output]) : value), full ? full + i : nullptr);
}

// dz (n places, outputs) = dy f'(z) from dy and y (n, outputs, places), or from f's double values `full`.
extern "C" __global__ void images_to_rows(const float* dy, const float* y, const double* full, float* dz, int64 n,
                                          int64 outputs, int64 places, int64 kind) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n * outputs * places) return;
    unsigned output = i % (unsigned)outputs, place = i / (unsigned)outputs % (unsigned)places;
    int64 at = (i / (unsigned)outputs / (unsigned)places * outputs + output) * places + place;
    double d = entered(dy[at]);
    dz[i] = left(kind == linear ? d : slope(kind, full ? full[at] : entered(y[at]), d));
}
