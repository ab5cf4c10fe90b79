// Copies the rows of a step's batch out of the data. SOURCE is the type of the data.
//   rows: the row numbers of the chunk's batches, n for each step.
//   first: null, or, for streamed data, where the chunk's first row lies; the others follow it in their order.
//   in_real: x * scale + offset in the batch's type;  in_double: (x - shift) * scale + offset in float64.
//   scales, offsets, shifts: numbers for each feature, or null where one number serves all.
struct Rescale {
    int64 how;
    double scale, offset, shift;
    const double *scales, *offsets, *shifts;
};
enum { plain, in_real, in_double };

__device__ inline real rescaled(SOURCE x, int64 feature, Rescale r) {
    if (r.how == plain) return number_of(x);
    double scale = r.scales ? r.scales[feature] : r.scale, offset = r.offsets ? r.offsets[feature] : r.offset;
    bool moved = r.offsets || r.offset != 0.0;
    if (r.how == in_real) {
        real y = number_of(x) * (real)scale;
        return moved ? y + (real)offset : y;
    }
    double y = (unflushed(x) - (r.shifts ? r.shifts[feature] : r.shift)) * scale;
    return (real)(moved ? y + offset : y);
}

// Labels or sample weights: rows of `words` 32-bit words, copied as they are. from is null if there are none.
struct Side {
    const unsigned* from;
    unsigned* to;
    int64 words;
};
__device__ inline void copy_row(Side side, int64 from, int64 to) {
    for (int64 j = blockIdx.x * blockDim.x + threadIdx.x; j < side.words; j += gridDim.x * blockDim.x)
        side.to[to * side.words + j] = side.from[from * side.words + j];
}

// Blocks: features x rows.
extern "C" __global__ void gather(const SOURCE* data, stored* batch, const int64* rows, const int64* first, int64 step,
                                  int64 n, int64 width, Rescale rescale, Side one, Side two, Side three) {
    for (int64 i = blockIdx.y; i < n; i += gridDim.y) {
        int64 row = first ? *first + step * n + i : rows[step * n + i];
        for (int64 j = blockIdx.x * blockDim.x + threadIdx.x; j < width; j += gridDim.x * blockDim.x)
            batch[i * width + j] = left(rescaled(data[row * width + j], j, rescale));
        copy_row(one, row, i);
        copy_row(two, row, i);
        copy_row(three, row, i);
    }
}

// Rows of integers as they are, and as double too if wide is not null: for exact numerics. Blocks as above.
extern "C" __global__ void gather_integers(const SOURCE* data, SOURCE* batch, double* wide, const int64* rows,
                                           const int64* first, int64 step, int64 n, int64 width, Side one, Side two,
                                           Side three) {
    for (int64 i = blockIdx.y; i < n; i += gridDim.y) {
        int64 row = first ? *first + step * n + i : rows[step * n + i];
        for (int64 j = blockIdx.x * blockDim.x + threadIdx.x; j < width; j += gridDim.x * blockDim.x) {
            SOURCE x = data[row * width + j];
            batch[i * width + j] = x;
            if (wide) wide[i * width + j] = (double)x;
        }
        copy_row(one, row, i);
        copy_row(two, row, i);
        copy_row(three, row, i);
    }
}

// Integers as double.
extern "C" __global__ void widen(const SOURCE* integers, double* wide, int64 size) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) wide[i] = (double)integers[i];
}
