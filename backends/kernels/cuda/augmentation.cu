// Augmentation: random fields of displacements, drawn from Philox4x64-10, and images that are deformed by them.
// Formulas are those of xnn.layers.augment and xnn.ops.warp.

// The number in (-1, 1) of a half word.
__device__ inline float signed_number(uint64 half) { return (2.0f * (float)(half >> 9) + 1.0f) * 1.1920928955078125e-07f - 1.0f; }

// noise = numbers in (-1, 1). A thread makes the eight numbers of one block; NumPy's first block has number 1.
//   state: the number of the chunk's first step, -, the seed. again: how often the layer has drawn before in this step.
extern "C" __global__ void signed_noise(real* noise, int64 size, const int64* state, int64 step, int64 again, int64 index,
                                        int64 purpose) {
    int64 block = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (block * 8 >= size) return;
    uint64 words[4];
    philox(block + 1, state[0] + step + again, index, purpose, state[2], words);
    for (int j = 0; j < 8 && block * 8 + j < size; ++j)
        noise[block * 8 + j] = signed_number(words[j / 2] >> (j % 2 * 32) & 0xffffffffu);
}

// Multiplies x along one axis, of `extent` numbers that lie `inner` apart, by a symmetric matrix and by `factor`.
extern "C" __global__ void smooth(const real* x, const real* matrix, real* y, int64 size, int64 extent, int64 inner, double factor) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned place = i / (unsigned)inner % (unsigned)extent;
    const real* line = x + (i - place * (unsigned)inner);
    real sum = 0;
    for (int64 k = 0; k < extent; ++k) sum += line[k * inner] * matrix[k * extent + place];
    y[i] = sum * (real)factor;
}

// field (n, 2, height, width) that turns, scales and shifts each image. A block for each image; its four numbers are
// half words 4 image to 4 image + 3.
//   rotation: degrees; grow: by which factors differ from 1; shift: pixels.
extern "C" __global__ void affine_field(real* field, int64 height, int64 width, const int64* state, int64 step, int64 again,
                                        int64 index, int64 purpose, double rotation, double grow, double shift) {
    __shared__ real map[6];
    int64 image = blockIdx.x;
    if (threadIdx.x == 0) {
        uint64 words[4];
        philox(image / 2 + 1, state[0] + step + again, index, purpose, state[2], words);
        const uint64* own = words + image % 2 * 2;
        double turn = signed_number(own[0] & 0xffffffffu), size = signed_number(own[0] >> 32);
        double down = signed_number(own[1] & 0xffffffffu), right = signed_number(own[1] >> 32);
        double angle = turn * rotation * 0.017453292519943295, factor = 1.0 + size * grow;
        real cosine = cos(angle) / factor, sine = sin(angle) / factor;
        map[0] = map[3] = cosine, map[1] = sine, map[2] = -sine;
        map[4] = down * shift, map[5] = right * shift;
    }
    __syncthreads();
    for (int64 pixel = threadIdx.x; pixel < height * width; pixel += blockDim.x) {
        real y = (real)(pixel / width) - (real)((height - 1) / 2.0) - map[4];
        real x = (real)(pixel % width) - (real)((width - 1) / 2.0) - map[5];
        field[image * 2 * height * width + pixel] = (map[0] - (real)1) * y + map[1] * x - map[4];
        field[(image * 2 + 1) * height * width + pixel] = map[2] * y + (map[3] - (real)1) * x - map[5];
    }
}

// The pixel before a position along one axis, from -1 to extent - 1, and the distance from it.
__device__ inline int64 pixel_before(real wanted, int64 extent, real* distance) {
    real place = larger(wanted, (real)-1);
    if (place > (real)extent) place = (real)extent;
    real before = floor(place);
    if (before > (real)(extent - 1)) before = (real)(extent - 1);
    *distance = place - before;
    return is_nan(before) ? 0 : (int64)before;
}

// y[n, c, i, j] = x[n, c] at (i, j) + field, interpolated between four pixels; 0 outside. x (n, channels, height, width).
extern "C" __global__ void warp(const real* x, const real* field, real* y, int64 size, int64 channels, int64 height, int64 width) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    unsigned pixels = height * width, pixel = i % pixels, plane = i / pixels, image = plane / (unsigned)channels;
    const real *moves = field + (int64)image * 2 * pixels + pixel, *from = x + (int64)plane * pixels;
    real down, right;
    int64 row = pixel_before((real)(pixel / (unsigned)width) + moves[0], height, &down);
    int64 column = pixel_before((real)(pixel % (unsigned)width) + moves[pixels], width, &right);
    real corner[2][2];
    for (int a = 0; a < 2; ++a)
        for (int b = 0; b < 2; ++b) {
            bool inside = row + a >= 0 && row + a < height && column + b >= 0 && column + b < width;
            corner[a][b] = inside ? from[(row + a) * width + column + b] : (real)0;
        }
    real top = corner[0][0] + right * (corner[0][1] - corner[0][0]);
    real bottom = corner[1][0] + right * (corner[1][1] - corner[1][0]);
    y[i] = top + down * (bottom - top);
}
