// Adam and SGD in one pass: the gradient is read once, as it is, and never written.
//
// The order of operations and the places of fused multiply-adds are those of torch's vectorised kernels
// (ATen/native/cpu/FusedAdamKernel.cpp, FusedSGDKernel.cpp), so that results are the same bits there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../half.h"
#include "../tiles.h"
#include "rows.h"

namespace graphopt {

// Mirrored by classes of the same names in cpu.py.
struct Scaling {
    double inverse_scale;
    double clip_value;
    double factor;
    double sign;
};

struct AdamOptions {
    Scaling scaling;
    double lr, beta1, beta2, weight_decay, eps;
    int64_t decoupled;
};

struct SgdOptions {
    Scaling scaling;
    double lr, momentum, dampening, weight_decay;
    int64_t nesterov, first;
};

namespace {

inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// clamp(g × inverse_scale, ±clip_value) × factor × sign; NaN stays NaN.
struct Scaled {
    explicit Scaled(const Scaling& scaling)
        : inverse_scale(scaling.inverse_scale), clip(scaling.clip_value), factor(scaling.factor), sign(scaling.sign) {}

    float operator()(float g) const {
        g *= inverse_scale;
        g = g < -clip ? -clip : g;
        g = g > clip ? clip : g;
        return g * factor * sign;
    }

    const float inverse_scale, clip, factor, sign;
};

// Runs `update(row, begin, gradient, count)` on every tile, then rounds the parameters into their copies.
template <typename Update>
void for_every_tile(const Row* rows, int64_t count, int threads, const Update& update) {
    const std::vector<Chunk> chunks = chunks_of(rows, count);
    const int64_t number = static_cast<int64_t>(chunks.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t index = 0; index < number; ++index) {
        const Chunk& chunk = chunks[index];
        const Row& row = *chunk.row;
        float tile[tile_elements];
        for (int64_t begin = chunk.begin; begin < chunk.end; begin += tile_elements) {
            const int64_t length = std::min(tile_elements, chunk.end - begin);
            const int64_t next = begin + 2 * tile_elements;
            prefetch(row.gradient, next, row.size, bytes_of(row.gradient_kind));
            for (const float* array : {row.param, row.first, row.second})
                if (array) prefetch(array, next, row.size, sizeof(float));
            if (row.copy) prefetch(row.copy, next, row.size, sizeof(uint16_t));
            update(row, begin, widened(row.gradient, row.gradient_kind, begin, length, tile), length);
            if (row.copy) narrow(row.param + begin, row.copy, row.copy_kind, begin, length);
        }
    }
}

struct Adam {
    explicit Adam(const AdamOptions& o)
        : scaled(o.scaling),
          lr(o.lr), beta1(o.beta1), beta2(o.beta2),
          decay(o.decoupled ? 1 - o.lr * o.weight_decay : 1),
          penalty(o.decoupled ? 0 : o.weight_decay),
          eps(o.eps),
          second_keeps(o.beta2), second_takes(1 - o.beta2),
          weight(1 - o.beta1 < 0.5 ? 1 - o.beta1 : -o.beta1) {}

    void operator()(const Row& row, int64_t begin, const float* gradient, int64_t count) const {
        const float step_size = -(lr / (1 - std::pow(beta1, *row.step)));
        const float root = std::sqrt(1 - std::pow(beta2, *row.step));
        float *param = row.param + begin, *first = row.first + begin, *second = row.second + begin;
        if (row.maximum) tile<true>(*this, step_size, root, param, gradient, first, second, row.maximum + begin, count);
        else tile<false>(*this, step_size, root, param, gradient, first, second, nullptr, count);
    }

    template <bool amsgrad>
    static void tile(
        const Adam c, const float step_size, const float root, float* __restrict param, const float* __restrict gradient,
        float* __restrict first, float* __restrict second, float* __restrict maximum, const int64_t count
    ) {
        for (int64_t i = 0; i < count; ++i) {
            const float p = param[i];
            const float g = fma(p, c.penalty, c.scaled(gradient[i]));
            const float m = fma(c.weight, g - first[i], c.weight < 0 ? g : first[i]);  // lerp, from the nearer end
            const float v = fma(c.second_takes * g, g, second[i] * c.second_keeps);
            float square = v;
            if (amsgrad) square = maximum[i] < v || v != v ? v : maximum[i];
            first[i] = m;
            second[i] = v;
            if (amsgrad) maximum[i] = square;
            param[i] = p * c.decay + step_size * m / (std::sqrt(square) / root + c.eps);
        }
    }

    const Scaled scaled;
    const double lr, beta1, beta2;
    const float decay, penalty, eps, second_keeps, second_takes, weight;
};

struct Sgd {
    explicit Sgd(const SgdOptions& o)
        : scaled(o.scaling), rate(-o.lr), momentum(o.momentum), takes(1 - o.dampening), penalty(o.weight_decay),
          nesterov(o.nesterov), first(o.first) {}

    void operator()(const Row& row, int64_t begin, const float* gradient, int64_t count) const {
        if (!row.first) plain(row.param + begin, gradient, count);
        else if (first) moved<true>(row.param + begin, row.first + begin, gradient, count);
        else moved<false>(row.param + begin, row.first + begin, gradient, count);
    }

    void plain(float* __restrict param, const float* __restrict gradient, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) param[i] = fma(fma(param[i], penalty, scaled(gradient[i])), rate, param[i]);
    }

    template <bool first_step>
    void moved(float* __restrict param, float* __restrict buffer, const float* __restrict gradient, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) {
            const float g = fma(param[i], penalty, scaled(gradient[i]));
            const float m = first_step ? g : fma(g, takes, buffer[i] * momentum);
            buffer[i] = m;
            param[i] = fma(nesterov ? fma(m, momentum, g) : m, rate, param[i]);
        }
    }

    const Scaled scaled;
    const float rate, momentum, takes, penalty;
    const bool nesterov, first;
};

}  // namespace

extern "C" void graphopt_adam(const Row* rows, int64_t count, const AdamOptions* options, int threads) {
    for (int64_t i = 0; i < count; ++i) *rows[i].step += 1;
    for_every_tile(rows, count, threads, Adam(*options));
}

extern "C" void graphopt_sgd(const Row* rows, int64_t count, const SgdOptions* options, int threads) {
    for_every_tile(rows, count, threads, Sgd(*options));
}

// param, the accumulator, becomes beta × param + gradient; with beta 0 it is only written.
extern "C" void graphopt_accumulate(const Row* rows, int64_t count, double beta, int threads) {
    const float keeps = beta;
    for_every_tile(rows, count, threads, [keeps](const Row& row, int64_t begin, const float* gradient, int64_t length) {
        float* accumulator = row.param + begin;
        if (keeps == 0)
            std::copy(gradient, gradient + length, accumulator);
        else
            for (int64_t i = 0; i < length; ++i) accumulator[i] = accumulator[i] * keeps + gradient[i];
    });
}

}  // namespace graphopt
