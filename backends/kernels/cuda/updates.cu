// One step of each rule of xnn.ops.updates over all parameters of a group, clipping, and averages of weights.
// Formulas and names are those of that file. A block changes one segment: neighbouring numbers of one parameter.
// The options of a rule are in the order of its signature.

struct Segment {
    real* w;
    const real* g;
    real* state[3];
    int64 count;
};

// A group of parameters: its segments, and its options in the first step of the chunk. Those of the next step lie
// `stride` numbers behind.
struct Group {
    const Segment* segments;
    const double* options;
    int64 stride;
};

#define FOR_EACH_NUMBER \
    Segment s = group.segments[blockIdx.x]; \
    const double* o = group.options + step * group.stride; \
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x)

__device__ inline real decayed(real g, real w, double weight_decay) {
    return weight_decay ? g + (real)weight_decay * w : g;
}

// The exponential moving average after one more value.
__device__ inline real average(real old, real fresh, double rate) { return (real)rate * old + (real)(1.0 - rate) * fresh; }

extern "C" __global__ void sgd(Group group, int64 step) {
    enum { learning_rate, momentum, nesterov, weight_decay };
    FOR_EACH_NUMBER {
        real direction = decayed(s.g[i], s.w[i], o[weight_decay]);
        if (real* velocity = s.state[0]) {
            velocity[i] = (real)o[momentum] * velocity[i] + direction;
            direction = o[nesterov] ? direction + (real)o[momentum] * velocity[i] : velocity[i];
        }
        s.w[i] -= (real)o[learning_rate] * direction;
    }
}

extern "C" __global__ void adagrad(Group group, int64 step) {
    enum { learning_rate, epsilon, weight_decay };
    FOR_EACH_NUMBER {
        real g = decayed(s.g[i], s.w[i], o[weight_decay]), total = s.state[0][i] + g * g;
        s.state[0][i] = total;
        s.w[i] -= (real)o[learning_rate] * (g / (root(total) + (real)o[epsilon]));
    }
}

// State: square, mean if centered, velocity if there is a momentum.
extern "C" __global__ void rmsprop(Group group, int64 step) {
    enum { learning_rate, alpha, epsilon, momentum, centered, weight_decay };
    FOR_EACH_NUMBER {
        real g = decayed(s.g[i], s.w[i], o[weight_decay]);
        real square = s.state[0][i] = average(s.state[0][i], g * g, o[alpha]), variance = square;
        if (o[centered]) {
            real mean = s.state[1][i] = average(s.state[1][i], g, o[alpha]);
            variance = larger(square - mean * mean, 0);
        }
        real direction = g / (root(variance) + (real)o[epsilon]);
        if (o[momentum]) {
            real* velocity = o[centered] ? s.state[2] : s.state[1];
            direction = velocity[i] = (real)o[momentum] * velocity[i] + direction;
        }
        s.w[i] -= (real)o[learning_rate] * direction;
    }
}

// State: mean square of the gradients, mean square of the steps.
extern "C" __global__ void adadelta(Group group, int64 step) {
    enum { learning_rate, rho, epsilon, weight_decay };
    FOR_EACH_NUMBER {
        real g = decayed(s.g[i], s.w[i], o[weight_decay]), epsilon_ = (real)o[epsilon];
        real square = s.state[0][i] = average(s.state[0][i], g * g, o[rho]);
        real direction = root(s.state[1][i] + epsilon_) / root(square + epsilon_) * g;
        s.state[1][i] = average(s.state[1][i], direction * direction, o[rho]);
        s.w[i] -= (real)o[learning_rate] * direction;
    }
}

enum { learning_rate_, beta1_, beta2_, beta1_power_, beta2_power_, epsilon_, weight_decay_ };  // of adam and adamw

// State: mean, square, and for AMSGrad the largest square.
__device__ inline real adam_step(Segment s, int64 i, real g, const double* o) {
    real mean = s.state[0][i] = average(s.state[0][i], g, o[beta1_]);
    real square = s.state[1][i] = average(s.state[1][i], g * g, o[beta2_]);
    if (s.state[2]) square = s.state[2][i] = larger(s.state[2][i], square);
    real unbiased = mean / (real)(1.0 - o[beta1_power_]);
    real scale = root(square / (real)(1.0 - o[beta2_power_])) + (real)o[epsilon_];
    return (real)o[learning_rate_] * (unbiased / scale);
}

extern "C" __global__ void adam(Group group, int64 step) {
    FOR_EACH_NUMBER s.w[i] -= adam_step(s, i, decayed(s.g[i], s.w[i], o[weight_decay_]), o);
}

extern "C" __global__ void adamw(Group group, int64 step) {
    FOR_EACH_NUMBER {
        real shrunk = s.w[i] * (real)(1.0 - o[learning_rate_] * o[weight_decay_]);
        s.w[i] = shrunk - adam_step(s, i, s.g[i], o);
    }
}

extern "C" __global__ void nadam(Group group, int64 step) {
    enum { learning_rate, beta1, beta2, mu, next_mu, mu_product, beta2_power, epsilon, weight_decay };
    FOR_EACH_NUMBER {
        real g = decayed(s.g[i], s.w[i], o[weight_decay]);
        real mean = s.state[0][i] = average(s.state[0][i], g, o[beta1]);
        real square = s.state[1][i] = average(s.state[1][i], g * g, o[beta2]);
        real now = (real)((1.0 - o[mu]) / (1.0 - o[mu_product]));
        real ahead = (real)(o[next_mu] / (1.0 - o[mu_product] * o[next_mu]));
        real scale = root(square / (real)(1.0 - o[beta2_power])) + (real)o[epsilon];
        s.w[i] -= (real)o[learning_rate] * ((now * g + ahead * mean) / scale);
    }
}

extern "C" __global__ void lion(Group group, int64 step) {
    enum { learning_rate, beta1, beta2, weight_decay };
    FOR_EACH_NUMBER {
        real g = s.g[i], mean = s.state[0][i], ahead = average(mean, g, o[beta1]);
        real direction = is_finite(ahead) ? (real)((ahead > 0) - (ahead < 0)) : ahead;
        s.state[0][i] = average(mean, g, o[beta2]);
        s.w[i] -= (real)o[learning_rate] * decayed(direction, s.w[i], o[weight_decay]);
    }
}

// average = decay * average + (1 - decay) * value. w is the average, g the value.
extern "C" __global__ void moving_average(const Segment* segments, double decay) {
    Segment s = segments[blockIdx.x];
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x) s.w[i] = average(s.w[i], s.g[i], decay);
}

// Limits every number to -limit .. limit; NaN and infinity stay.
extern "C" __global__ void clip_by_value(const Segment* segments, double limit) {
    Segment s = segments[blockIdx.x];
    for (int64 i = threadIdx.x; i < s.count; i += blockDim.x)
        if (is_finite(s.w[i])) s.w[i] = s.w[i] > (real)limit ? (real)limit : s.w[i] < -(real)limit ? -(real)limit : s.w[i];
}

// The sum of squares of each segment.
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
