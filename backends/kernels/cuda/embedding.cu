// Rows of a table chosen by number, and the gradient of the table. INDEX is the type of the numbers.

// y[place, :] = weight[indices[place], :], or NaN for a number that is not in 0 .. count - 1.
extern "C" __global__ void embedding(const INDEX* indices, const real* weight, real* y, int64 size, int64 count, int64 width) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    int64 row = (int64)indices[i / (unsigned)width];
    y[i] = row >= 0 && row < count ? weight[row * width + i % (unsigned)width] : NOT_A_NUMBER;
}

#define TILE 256     // indices that a block looks at together: one for each thread
#define CHUNK 4096   // indices whose gradients are added to one another before they are added to dweight
#define NUMBERS 2048 // of dweight that a block has

// dweight[row, :]: the sum of dy[place, :] over the places where the row was chosen, in the order of the places. A block
// has `rows` rows and `columns` columns of dweight and reads all indices. `lanes` threads share a row.
extern "C" __global__ void embedding_gradient(const INDEX* indices, const real* dy, real* dweight, int64 places, int64 count,
                                              int64 width, int64 rows, int64 columns, int64 lanes) {
    __shared__ int found[TILE];
    __shared__ real sums[NUMBERS];
    int64 first = blockIdx.x * rows, own = min(rows, count - first), left = blockIdx.y * columns;
    int64 across = min(columns, width - left), team = threadIdx.x / lanes, teams = TILE / lanes, lane = threadIdx.x % lanes;
    for (int64 chunk = 0; chunk == 0 || chunk < places; chunk += CHUNK) {
        for (int64 row = team; row < own; row += teams)
            for (int64 c = lane; c < across; c += lanes) sums[row * columns + c] = 0;
        for (int64 tile = chunk; tile < min(places, chunk + CHUNK); tile += TILE) {
            int64 place = tile + threadIdx.x, row = place < places ? (int64)indices[place] - first : -1;
            bool mine = row >= 0 && row < own;
            if (!__syncthreads_or(mine)) continue;
            found[threadIdx.x] = mine ? (int)row : -1;
            __syncthreads();
            for (int k = 0; k < TILE; ++k) {
                if (found[k] < 0 || found[k] % teams != team) continue;
                const real* from = dy + (tile + k) * width + left;
                for (int64 c = lane; c < across; c += lanes) sums[found[k] * columns + c] += from[c];
            }
        }
        for (int64 row = team; row < own; row += teams)
            for (int64 c = lane; c < across; c += lanes) {
                real* to = dweight + (first + row) * width + left + c;
                *to = chunk ? *to + sums[row * columns + c] : sums[row * columns + c];
            }
    }
}
