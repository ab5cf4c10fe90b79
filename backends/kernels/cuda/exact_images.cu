// Convolution in exact numerics: the windows as the rows of a matrix, and the order of axes around the products of slices.
// images.cu stands in front of this file. SOURCE is the type of the images, TARGET that of the matrix: float for both, or
// an integer and double.

// matrix[image and window][channel and element] = x, or 0 outside the image. A thread for each number of the matrix.
extern "C" __global__ void unfold_rows(const SOURCE* x, TARGET* matrix, Images s, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned height = s.rows.kernel, across = s.columns.kernel, lines = s.channels * height * across;
    unsigned line = i % lines, place = i / lines, width = s.columns.number;
    int64 row = place / width % (unsigned)s.rows.number * s.rows.stride + line / across % height * s.rows.dilation - s.rows.before;
    int64 column = place % width * s.columns.stride + line % across * s.columns.dilation - s.columns.before;
    int64 plane = place / width / (unsigned)s.rows.number * s.channels + line / across / height;
    bool inside = row >= 0 && row < s.rows.extent && column >= 0 && column < s.columns.extent;
    matrix[i] = inside ? (TARGET)x[(plane * s.rows.extent + row) * s.columns.extent + column] : (TARGET)0;
}

// dx: for each element of the images the sum of the products of slices of all windows that contain it, first within a
// window's row. matrix: (2 n windows, channels and elements), the products of second slices behind those of the first.
extern "C" __global__ void fold_rows(const double* matrix, float* dx, Images s, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned column = i % (unsigned)s.columns.extent, row = i / (unsigned)s.columns.extent % (unsigned)s.rows.extent;
    unsigned plane = i / (unsigned)s.columns.extent / (unsigned)s.rows.extent;
    int64 image = plane / (unsigned)s.channels, channel = plane % (unsigned)s.channels;
    int64 lines = s.channels * s.rows.kernel * s.columns.kernel, second = s.n * s.rows.number * s.columns.number * lines;
    double total = 0.0;
    for (int64 e = 0; e < s.rows.kernel; ++e) {
        int64 u = window_at(row, e, s.rows);
        double sum = 0.0;
        for (int64 f = 0; u >= 0 && f < s.columns.kernel; ++f) {
            int64 v = window_at(column, f, s.columns), line = (channel * s.rows.kernel + e) * s.columns.kernel + f;
            int64 at = ((image * s.rows.number + u) * s.columns.number + v) * lines + line;
            if (v >= 0) sum += matrix[at] + matrix[at + second];
        }
        total += sum;
    }
    dx[i] = left(total);
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
    double value = two ? z[at] + z[at + size] : z[at] * scale;
    float rounded = left(b ? value + entered(b[output]) : value);
    if (kind != linear) {
        value = activated(kind, entered(rounded));
        if (full) full[i] = value;
        rounded = left(value);
    }
    y[i] = rounded;
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
