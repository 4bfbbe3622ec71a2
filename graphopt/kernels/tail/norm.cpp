// Sums of powers of all gradients, in one read.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../half.h"
#include "../tiles.h"
#include "rows.h"

namespace graphopt {
namespace {

constexpr int64_t width = 16;
constexpr int64_t streams = 4;
typedef float Floats __attribute__((vector_size(width * sizeof(float))));
typedef uint32_t Bits __attribute__((vector_size(width * sizeof(uint32_t))));

// Adds |x|, |x|² or |x|³ up in fp32: 64 running sums a chunk, so that each is of few terms. With power 0 it keeps the
// largest |x|: as integers the magnitudes of fp32 numbers are in order, and NaN is above infinity.
template <int power>
struct Running {
    void add(const float* x, int64_t count) {
        int64_t i = 0;
        for (; i + streams * width <= count; i += streams * width)
            for (int64_t stream = 0; stream < streams; ++stream) take(stream, x + i + stream * width);
        for (int64_t stream = 0; i < count; i += width, stream = (stream + 1) % streams) {
            float padded[width] = {};
            std::memcpy(padded, x + i, std::min(width, count - i) * sizeof(float));
            take(stream, padded);
        }
    }

    void take(int64_t stream, const float* x) {
        Bits magnitude;
        std::memcpy(&magnitude, x, sizeof magnitude);
        magnitude &= 0x7FFFFFFF;
        if (power == 0) {
            highest[stream] = highest[stream] > magnitude ? highest[stream] : magnitude;
        } else {
            Floats value;
            std::memcpy(&value, &magnitude, sizeof value);
            sums[stream] += power == 1 ? value : power == 2 ? value * value : value * value * value;
        }
    }

    double total() const {
        double result = 0;
        uint32_t largest = 0;
        for (int64_t stream = 0; stream < streams; ++stream)
            for (int64_t lane = 0; lane < width; ++lane) {
                result += sums[stream][lane];
                largest = std::max<uint32_t>(largest, highest[stream][lane]);
            }
        return power == 0 ? from_bits(largest) : result;
    }

    Floats sums[streams] = {};
    Bits highest[streams] = {};
};

template <int power>
double of_chunk(const Chunk& chunk) {
    const Row& row = *chunk.row;
    Running<power> running;
    float tile[tile_elements];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += tile_elements) {
        const int64_t length = std::min(tile_elements, chunk.end - begin);
        prefetch(row.gradient, begin + 8 * tile_elements, row.size, bytes_of(row.gradient_kind));
        running.add(widened(row.gradient, row.gradient_kind, begin, length, tile), length);
    }
    return running.total();
}

double combined(double a, double b, int power) {
    if (power != 0) return a + b;
    return std::isnan(a) || a > b ? a : b;
}

}  // namespace

// The sum of |x|^power over all gradients, power 1, 2 or 3; with power 0 the largest |x|, and NaN where there is one.
// The same for any number of threads: chunks are added in their own order.
extern "C" double graphopt_sum_of_powers(const Row* rows, int64_t count, int power, int threads) {
    const std::vector<Chunk> chunks = chunks_of(rows, count);
    std::vector<double> sums(chunks.size());
    const int64_t number = static_cast<int64_t>(chunks.size());
    const auto of = power == 0 ? of_chunk<0> : power == 1 ? of_chunk<1> : power == 2 ? of_chunk<2> : of_chunk<3>;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t index = 0; index < number; ++index) sums[index] = of(chunks[index]);
    double total = 0;
    for (double sum : sums) total = combined(total, sum, power);
    return total;
}

}  // namespace graphopt
