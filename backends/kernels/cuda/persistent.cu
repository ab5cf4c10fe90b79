// Steps of training of a multilayer perceptron in one launch. One cluster of blocks holds the network in its shared
// memory: weights, the optimizer's state, outputs and gradients. Global memory is read for the batches only.
//
// The layers are split in turn. An odd layer (1, 3, ...) is split by its inputs: a block has some rows of W, and what it
// computes of the output is added up over the blocks. The sum is given to every block. An even layer is split by its
// outputs: a block has some columns of W, reads the whole input, and keeps its own columns of the output, which are what
// it needs as the next layer's input. Backward is the mirror image. Sums have a fixed order; there are no atomics.
//
// launch.py puts common.cu, gather.cu, loss.cu, activations.cu and updates.cu in front. Defined by options:
//   BLOCKS, THREADS: of the cluster, of a block. ROWS: of the largest batch. BYTES: of a block's shared memory.
//   WIDTHS: inputs, outputs of each layer. KINDS, OPTIONS: the activation of each layer.
//   STATES: arrays of the optimizer's state. RULE: the function of updates.cu that changes a number.
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

constexpr int WIDTH[] = {WIDTHS}, KIND[] = {KINDS};
constexpr double OPTION[] = {OPTIONS};
constexpr int LAYERS = sizeof(WIDTH) / sizeof(int) - 1, CLASSES = WIDTH[LAYERS], FIRST_CURVE = 16;

constexpr int rounded_up(int n, int parts) { return (n + parts - 1) / parts; }
// The most of n inputs or outputs that a block has. Those of a block begin at begin_of.
constexpr int share_of_block(int n) { return rounded_up(n, BLOCKS); }
__device__ inline int begin_of(int rank, int n) { return rank * n / BLOCKS; }

// The width of the widest layer whose output is added up over the blocks, but for the last one.
constexpr int widest_sum() {
    int widest = 1;
    for (int layer = 1; layer < LAYERS; layer += 2) widest = WIDTH[layer] > widest ? WIDTH[layer] : widest;
    return widest;
}

// What a block has of layer L = 1 .. LAYERS: W (rows x columns) and b, each followed by the optimizer's state; the output
// y, and its gradient g, (ROWS x width). Where blocks add up the output, g takes the place of y: for each number one
// block needs y until it has g. Where f' needs the activation's input z, z is kept where g will be, or by that block.
template <int L> struct Layer {
    static constexpr bool by_inputs = L % 2 == 1, last = L == LAYERS, in_place = by_inputs && !last;
    static constexpr int in = WIDTH[L - 1], out = WIDTH[L];
    static constexpr int rows = by_inputs ? share_of_block(in) : in, columns = by_inputs ? out : share_of_block(out);
    static constexpr int width = last ? out : columns, kind = KIND[L - 1];
    static constexpr bool is_curve = kind >= FIRST_CURVE;
    static constexpr double option = OPTION[L - 1];
    real w[1 + STATES][rows * columns], b[1 + STATES][columns], y[ROWS * width];
    real other[in_place ? share_of_block(ROWS * width) : ROWS * width];
    __device__ real* g() { return in_place ? y : other; }
};
template <int L> struct Layers : Layers<L - 1> {
    Layer<L> layer;
};
template <> struct Layers<0> {};

struct Shared {
    int64 rows[ROWS], labels[ROWS];
    Layers<LAYERS> layers;
    real x[ROWS * share_of_block(WIDTH[0])], terms[ROWS], rights[ROWS];
    real part[ROWS * widest_sum()], part_of_logits[ROWS * CLASSES];  // sums over this block's inputs or outputs
};
static_assert(sizeof(Shared) == BYTES, "the rule in persistent_rule.py counts the bytes");

// A parameter in global memory: its value and state, and the options of its rule in the first step.
struct Place {
    real* at[4];
    const double* options;
};
// W and b of each layer. The options of the next step lie `stride` numbers behind.
struct Network {
    Place places[2 * LAYERS];
    int64 stride;
};

// The part of W that a block has.
template <int L> struct Own {
    int row = 0, column = 0, rows = Layer<L>::in, columns = Layer<L>::out;
    __device__ Own(int rank) {
        if (Layer<L>::by_inputs) row = begin_of(rank, rows), rows = begin_of(rank + 1, rows) - row;
        else column = begin_of(rank, columns), columns = begin_of(rank + 1, columns) - column;
    }
};

// A tile that is large enough for a block to cover m x n numbers, up to 8 x 4.
struct Tile {
    int down, across;
};
constexpr Tile tile_of(int m, int n) {
    Tile tile = {1, 1};
    while (tile.down * tile.across < 32 && rounded_up(m, tile.down) * rounded_up(n, tile.across) > THREADS)
        (tile.down <= tile.across ? tile.down : tile.across) *= 2;
    return tile;
}

// a b + c, rounded once. The compiler's option against such fusion leaves this one.
__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// The matrix product of a (m, k) and b (k, n), at most M x N: store(i, j, sum) gets each number of it.
template <int M, int N, class A, class B, class F>
__device__ __forceinline__ void product(int m, int n, int k, A a, B b, F store) {
    constexpr int TM = tile_of(M, N).down, TN = tile_of(M, N).across, across = rounded_up(N, TN);
    for (int tile = threadIdx.x; tile < rounded_up(m, TM) * across; tile += THREADS) {
        int i0 = tile / across * TM, j0 = tile % across * TN;
        if (j0 >= n) continue;
        real sum[TM][TN] = {};
#pragma unroll 4
        for (int l = 0; l < k; ++l) {
            real left[TM], right[TN];
#pragma unroll
            for (int i = 0; i < TM; ++i) left[i] = i0 + i < m ? a(i0 + i, l) : (real)0;
#pragma unroll
            for (int j = 0; j < TN; ++j) right[j] = j0 + j < n ? b(l, j0 + j) : (real)0;
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sum[i][j] = multiply_add(left[i], right[j], sum[i][j]);
        }
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j)
                if (i0 + i < m && j0 + j < n) store(i0 + i, j0 + j, sum[i][j]);
    }
}

// Takes the step of the rule for number e of a parameter and its state.
template <int N> __device__ inline void change(real (&numbers)[1 + STATES][N], int e, real gradient, const double* options) {
    State state = {};
    for (int kind = 0; kind < STATES; ++kind) state.at[kind] = &numbers[1 + kind][e];
    numbers[0][e] = RULE(numbers[0][e], gradient, state, options);
}

// One block of the cluster.
struct Block {
    Shared& s;
    cg::cluster_group cluster;
    int rank;
    int n;  // rows of the batch
    Network& network;

    template <int L> __device__ Layer<L>& layer() { return static_cast<Layers<L>&>(s.layers).layer; }

    // The input of layer L, and the numbers from one row of it to the next.
    template <int L> __device__ const real* input() {
        if constexpr (L == 1) return s.x;
        else return layer<L - 1>().y;
    }
    template <int L> static constexpr int stride = Layer<L>::rows;

    // The sum over the blocks of number e of an array.
    __device__ real sum(real* array, int e) {
        real parts[BLOCKS], total = 0;
#pragma unroll
        for (int r = 0; r < BLOCKS; ++r) parts[r] = cluster.map_shared_rank(array, r)[e];
#pragma unroll
        for (int r = 0; r < BLOCKS; ++r) total += parts[r];
        return total;
    }
    __device__ void give_to_all(real* array, int e, real value) {
#pragma unroll
        for (int r = 0; r < BLOCKS; ++r) cluster.map_shared_rank(array, r)[e] = value;
    }
    // Calls f with the numbers of this block's share of an array (n, width).
    template <class F> __device__ void each_of_share(int width, F f) {
        for (int e = begin_of(rank, n * width) + threadIdx.x; e < begin_of(rank + 1, n * width); e += THREADS) f(e);
    }

    // Where z of layer L is kept, at e.
    template <int L> __device__ real& kept(int e) {
        return layer<L>().other[Layer<L>::in_place ? e - begin_of(rank, n * Layer<L>::width) : e];
    }
    // y of layer L from z, at e.
    template <int L> __device__ real output(real z, int e) {
        using Y = Layer<L>;
        if constexpr (!Y::is_curve) return activated(Y::kind, z);
        else return kept<L>(e) = z, curve_at(z, Y::kind - FIRST_CURVE, Y::option);
    }
    // The gradient of z from that of y, at e.
    template <int L> __device__ real gradient(real dy, int e) {
        using Y = Layer<L>;
        if constexpr (!Y::is_curve) return slope(Y::kind, layer<L>().y[e], dy);
        else return curve_slope(kept<L>(e), dy, Y::kind - FIRST_CURVE, Y::option);
    }

    // Copies the block's columns of the batch.
    __device__ void gather(const SOURCE* __restrict__ data, const LABEL* __restrict__ labels, const int64* rows,
                           Rescale rescale) {
        for (int i = threadIdx.x; i < n; i += THREADS) s.rows[i] = rows[i], s.labels[i] = labels[rows[i]];
        __syncthreads();
        constexpr int width = share_of_block(WIDTH[0]);
        Own<1> own(rank);
        for (int e = threadIdx.x; e < n * width; e += THREADS) {
            int feature = own.row + e % width;
            if (e % width < own.rows) s.x[e] = rescaled(data[s.rows[e / width] * WIDTH[0] + feature], feature, rescale);
        }
        __syncthreads();
    }

    // The outputs of the layers up to L.
    template <int L> __device__ void forward() {
        using Y = Layer<L>;
        if constexpr (L > 1) forward<L - 1>();
        Y& me = layer<L>();
        Own<L> own(rank);
        const real* x = input<L>();
        auto left = [&](int i, int l) { return x[i * stride<L> + l]; };
        auto right = [&](int l, int j) { return me.w[0][l * Y::columns + j]; };
        if constexpr (Y::by_inputs) {
            real* part = Y::last ? s.part_of_logits : s.part;
            product<ROWS, Y::out>(n, Y::out, own.rows, left, right, [&](int i, int j, real v) { part[i * Y::out + j] = v; });
            cluster.sync();
            if constexpr (Y::last) {
                for (int e = threadIdx.x; e < n * Y::out; e += THREADS) me.y[e] = sum(part, e) + me.b[0][e % Y::out];
                __syncthreads();
            } else {
                each_of_share(Y::out, [&](int e) { give_to_all(me.y, e, output<L>(sum(part, e) + me.b[0][e % Y::out], e)); });
                cluster.sync();
            }
        } else {
            product<ROWS, Y::columns>(n, own.columns, Y::in, left, right, [&](int i, int j, real v) {
                v += me.b[0][j];
                if constexpr (Y::last) give_to_all(me.y, i * Y::width + own.column + j, v);
                else me.y[i * Y::width + j] = output<L>(v, i * Y::width + j);
            });
            if constexpr (Y::last) cluster.sync();
            else __syncthreads();
        }
    }

    // The loss and the gradient of the logits, a warp for each row. Every block has all logits and computes all of it.
    __device__ void loss(Record record, int64 step, int64 loss_column, int64 right_column) {
        Layer<LAYERS>& me = layer<LAYERS>();
        for (int row = threadIdx.x / 32; row < n; row += THREADS / 32) {
            const real* z = me.y + row * CLASSES;
            real term = cross_entropy_of(z, s.labels[row], me.g() + row * CLASSES, CLASSES, (real)1 / (real)n, Options{}, 0);
            int best = right_column >= 0 ? predicted(z, CLASSES) : 0;
            if (threadIdx.x % 32 == 0) s.terms[row] = term, s.rights[row] = best == s.labels[row] ? (real)1 : (real)0;
        }
        __syncthreads();
        if (rank || threadIdx.x >= 32) return;
        real term = 0, right = 0;
        for (int row = threadIdx.x; row < n; row += 32) term += s.terms[row], right += s.rights[row];
        term = warp_sum(term), right = warp_sum(right);
        if (threadIdx.x) return;
        keep(record, step, loss_column, term / (real)n);
        keep(record, step, right_column, right);
    }

    // The gradients of the inputs of the layers from L down to 2, and the step of the rule for W and b of each.
    template <int L> __device__ void backward(int64 step) {
        using Y = Layer<L>;
        Y& me = layer<L>();
        Own<L> own(rank);
        const real* x = input<L>();
        const real* g = me.g() + (Y::last ? own.column : 0);
        auto dz = [&](int i, int j) { return g[i * Y::width + j]; };
        auto turned = [&](int l, int j) { return me.w[0][j * Y::columns + l]; };
        if constexpr (L > 1) {
            if constexpr (Y::by_inputs)
                product<ROWS, Y::rows>(n, own.rows, Y::out, dz, turned, [&](int i, int j, real v) {
                    int e = i * stride<L> + j;
                    layer<L - 1>().g()[e] = gradient<L - 1>(v, e);
                });
            else
                product<ROWS, Y::in>(n, Y::in, own.columns, dz, turned, [&](int i, int j, real v) { s.part[i * Y::in + j] = v; });
            __syncthreads();  // W has been read, and changes now
        }
        const Place &of_w = network.places[2 * L - 2], &of_b = network.places[2 * L - 1];
        const double *options_of_w = of_w.options + step * network.stride;
        const double *options_of_b = of_b.options + step * network.stride;
        product<Y::rows, Y::columns>(own.rows, own.columns, n, [&](int i, int l) { return x[l * stride<L> + i]; }, dz,
            [&](int i, int j, real v) { change(me.w, i * Y::columns + j, v, options_of_w); });
        for (int j = threadIdx.x; j < own.columns; j += THREADS) {
            real total = 0;
            for (int i = 0; i < n; ++i) total += dz(i, j);
            change(me.b, j, total, options_of_b);
        }
        if constexpr (L > 1) {
            if constexpr (!Y::by_inputs) {
                cluster.sync();
                each_of_share(Y::in, [&](int e) { give_to_all(layer<L - 1>().g(), e, gradient<L - 1>(sum(s.part, e), e)); });
                cluster.sync();
            }
            backward<L - 1>(step);
        }
    }

    // Copies W and b of the layers up to L, with their state, from global memory or back to it.
    template <int L> __device__ void copy(bool back) {
        using Y = Layer<L>;
        if constexpr (L > 1) copy<L - 1>(back);
        Y& me = layer<L>();
        Own<L> own(rank);
        auto one = [&](real& here, real& there) { back ? there = here : here = there; };
        for (int kind = 0; kind <= STATES; ++kind) {
            real *w = network.places[2 * L - 2].at[kind], *b = network.places[2 * L - 1].at[kind];
            for (int e = threadIdx.x; e < Y::rows * Y::columns; e += THREADS) {
                int i = e / Y::columns, j = e % Y::columns;
                if (i < own.rows && j < own.columns) one(me.w[kind][e], w[(own.row + i) * Y::out + own.column + j]);
            }
            if (!back || !Y::by_inputs || rank == 0)  // b of a layer that is split by inputs is the same in all blocks
                for (int j = threadIdx.x; j < own.columns; j += THREADS) one(me.b[kind][j], b[own.column + j]);
        }
    }
};

// rows: the row numbers of the batches, n for each step. loss_column, right_column: of the record, or -1.
extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 1)
train(const SOURCE* data, const LABEL* labels, const int64* rows, int64 n, int64 steps, Rescale rescale, Network network,
      Record record, int64 loss_column, int64 right_column) {
    if (steps == 0) return;  // a trial whether the cluster can be launched
    extern __shared__ int64 memory[];
    cg::cluster_group cluster = cg::this_cluster();
    Block block = {*reinterpret_cast<Shared*>(memory), cluster, (int)cluster.block_rank(), (int)n, network};
    block.copy<LAYERS>(false);
    for (int64 step = 0; step < steps; ++step) {
        block.gather(data, labels, rows + step * n, rescale);
        block.forward<LAYERS>();
        block.loss(record, step, loss_column, right_column);
        block.backward<LAYERS>(step);
        if (LAYERS == 1) cluster.sync();  // the sums of the logits have been read; else other barriers came after them
    }
    __syncthreads();
    block.copy<LAYERS>(true);
}
