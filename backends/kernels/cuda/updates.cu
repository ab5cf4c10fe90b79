// One step of each rule of xnn.ops.updates over all parameters of a group, clipping, and averages of weights.
// Formulas and names are those of that file. The options of a rule are in the order of its signature. Numbers are read by
// `entered` and stored by `left`, which do nothing unless numerics are exact; there a rule computes with what it has
// computed, not with what it has stored.

__device__ inline real decayed(real g, real w, double weight_decay) {
    return weight_decay ? g + (real)weight_decay * w : g;
}

// The exponential moving average after one more value.
__device__ inline real average(real old, real fresh, double rate) { return (real)rate * old + (real)(1.0 - rate) * fresh; }

// A number of the state, and its next average, which is stored there.
__device__ inline real next_average(stored* place, real fresh, double rate) {
    real value = average(entered(*place), fresh, rate);
    *place = left(value);
    return value;
}

// The rules for one number: w after the step, from its gradient g. s has the places of its state; null if there is none.
struct State {
    stored* at[3];
};

__device__ inline real sgd_step(real w, real g, State s, const double* o) {
    enum { learning_rate, momentum, nesterov, weight_decay };
    real direction = decayed(g, w, o[weight_decay]);
    if (s.at[0]) {
        real velocity = (real)o[momentum] * entered(*s.at[0]) + direction;
        *s.at[0] = left(velocity);
        direction = o[nesterov] ? direction + (real)o[momentum] * velocity : velocity;
    }
    return w - (real)o[learning_rate] * direction;
}

__device__ inline real adagrad_step(real w, real g, State s, const double* o) {
    enum { learning_rate, epsilon, weight_decay };
    g = decayed(g, w, o[weight_decay]);
    real total = entered(*s.at[0]) + g * g;
    *s.at[0] = left(total);
    return w - (real)o[learning_rate] * (g / (root(total) + (real)o[epsilon]));
}

// State: square, mean if centered, velocity if there is a momentum.
__device__ inline real rmsprop_step(real w, real g, State s, const double* o) {
    enum { learning_rate, alpha, epsilon, momentum, centered, weight_decay };
    g = decayed(g, w, o[weight_decay]);
    real square = next_average(s.at[0], g * g, o[alpha]), variance = square;
    if (o[centered]) {
        real mean = next_average(s.at[1], g, o[alpha]);
        variance = larger(square - mean * mean, 0);
    }
    real direction = g / (root(variance) + (real)o[epsilon]);
    if (o[momentum]) {
        stored* velocity = o[centered] ? s.at[2] : s.at[1];
        direction = (real)o[momentum] * entered(*velocity) + direction;
        *velocity = left(direction);
    }
    return w - (real)o[learning_rate] * direction;
}

// State: mean square of the gradients, mean square of the steps.
__device__ inline real adadelta_step(real w, real g, State s, const double* o) {
    enum { learning_rate, rho, epsilon, weight_decay };
    real epsilon_ = (real)o[epsilon];
    g = decayed(g, w, o[weight_decay]);
    real square = next_average(s.at[0], g * g, o[rho]);
    real direction = root(entered(*s.at[1]) + epsilon_) / root(square + epsilon_) * g;
    next_average(s.at[1], direction * direction, o[rho]);
    return w - (real)o[learning_rate] * direction;
}

enum { learning_rate_, beta1_, beta2_, beta1_power_, beta2_power_, epsilon_, weight_decay_ };  // of adam and adamw

// What Adam subtracts. State: mean, square, and for AMSGrad the largest square.
__device__ inline real adam_change(real g, State s, const double* o) {
    real mean = next_average(s.at[0], g, o[beta1_]);
    real square = next_average(s.at[1], g * g, o[beta2_]);
    if (s.at[2]) {
        square = larger(entered(*s.at[2]), square);
        *s.at[2] = left(square);
    }
    real unbiased = mean / (real)(1.0 - o[beta1_power_]);
    real scale = root(square / (real)(1.0 - o[beta2_power_])) + (real)o[epsilon_];
    return (real)o[learning_rate_] * (unbiased / scale);
}

__device__ inline real adam_step(real w, real g, State s, const double* o) {
    return w - adam_change(decayed(g, w, o[weight_decay_]), s, o);
}

__device__ inline real adamw_step(real w, real g, State s, const double* o) {
    real shrunk = w * (real)(1.0 - o[learning_rate_] * o[weight_decay_]);
    return shrunk - adam_change(g, s, o);
}

__device__ inline real nadam_step(real w, real g, State s, const double* o) {
    enum { learning_rate, beta1, beta2, mu, next_mu, mu_product, beta2_power, epsilon, weight_decay };
    g = decayed(g, w, o[weight_decay]);
    real mean = next_average(s.at[0], g, o[beta1]);
    real square = next_average(s.at[1], g * g, o[beta2]);
    real now = (real)((1.0 - o[mu]) / (1.0 - o[mu_product]));
    real ahead = (real)(o[next_mu] / (1.0 - o[mu_product] * o[next_mu]));
    real scale = root(square / (real)(1.0 - o[beta2_power])) + (real)o[epsilon];
    return w - (real)o[learning_rate] * ((now * g + ahead * mean) / scale);
}

__device__ inline real lion_step(real w, real g, State s, const double* o) {
    enum { learning_rate, beta1, beta2, weight_decay };
    real ahead = average(entered(*s.at[0]), g, o[beta1]);
    real direction = is_finite(ahead) ? (real)((ahead > 0) - (ahead < 0)) : ahead;
    next_average(s.at[0], g, o[beta2]);
    return w - (real)o[learning_rate] * decayed(direction, w, o[weight_decay]);
}

// A block changes one segment: neighbouring numbers of one parameter.
struct Segment {
    stored* w;
    const stored* g;
    stored* state[3];
    int64 count;
};

// A group of parameters: its segments, and its options in the first step of the chunk. Those of the next step lie
// `stride` numbers behind.
struct Group {
    const Segment* segments;
    const double* options;
    int64 stride;
};

__device__ inline State state_of(const Segment& s, int64 i) {
    State state;
    for (int kind = 0; kind < 3; ++kind) state.at[kind] = s.state[kind] ? s.state[kind] + i : nullptr;
    return state;
}

#define CHANGE_EACH_NUMBER_BY(rule_step) \
    Segment s = group.segments[blockIdx.x]; \
    const double* o = group.options + step * group.stride; \
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x) \
        s.w[i] = left(rule_step(entered(s.w[i]), entered(s.g[i]), state_of(s, i), o))

extern "C" __global__ void sgd(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(sgd_step); }
extern "C" __global__ void adagrad(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(adagrad_step); }
extern "C" __global__ void rmsprop(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(rmsprop_step); }
extern "C" __global__ void adadelta(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(adadelta_step); }
extern "C" __global__ void adam(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(adam_step); }
extern "C" __global__ void adamw(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(adamw_step); }
extern "C" __global__ void nadam(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(nadam_step); }
extern "C" __global__ void lion(Group group, int64 step) { CHANGE_EACH_NUMBER_BY(lion_step); }

// average = decay * average + (1 - decay) * value. w is the average, g the value.
extern "C" __global__ void moving_average(const Segment* segments, double decay) {
    Segment s = segments[blockIdx.x];
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x) next_average(s.w + i, entered(s.g[i]), decay);
}

// Limits every number to -limit .. limit; NaN and infinity stay.
extern "C" __global__ void clip_by_value(const Segment* segments, double limit) {
    Segment s = segments[blockIdx.x];
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x) {
        real g = entered(s.w[i]);
        if (is_finite(g)) s.w[i] = left(g > (real)limit ? (real)limit : g < -(real)limit ? -(real)limit : g);
    }
}

// The sum of squares of each segment; not for exact numerics, whose clipping by the norm is in exact.cu.
extern "C" __global__ void sums_of_squares(const Segment* segments, double* sums) {
    Segment s = segments[blockIdx.x];
    double sum = 0;
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x) sum += (double)s.w[i] * s.w[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Multiplies all numbers by min(1, limit / (norm + 1e-6)), or by NaN if the norm is not finite. Every block adds the
// sums of all segments in the same order.
extern "C" __global__ void clip_by_norm(const Segment* segments, const double* sums, double limit) {
    __shared__ real factor;
    double sum = 0;
    for (int64 i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        real norm = root((real)sum);
        real least = (real)limit / (norm + (real)1e-6);
        factor = !is_finite(norm) ? NOT_A_NUMBER : least < 1 ? least : (real)1;
    }
    __syncthreads();
    Segment s = segments[blockIdx.x];
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x) s.w[i] *= factor;
}
