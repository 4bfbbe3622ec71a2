// The largest elements of gradients into a wire, in one read of gradients and residuals.
//
// A sample gives a magnitude that somewhat more elements reach than can be sent. Those are listed while gradients and
// residuals are added up, and the cut among them is exact. Where fewer reach it, the sums are read once more.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../half.h"
#include "../tiles.h"
#include "largest.h"

namespace graphopt {

// Mirrored by `_rows` in cpu.py. `residual` may be null; `momentum` is null, or else
// `residual` and `moved` are not. `section` is where this parameter's part of the wire begins.
struct SparseRow {
    int64_t size;
    int64_t capacity;
    float* gradient;
    const float* residual;
    const float* momentum;
    float* moved;
    uint8_t* section;

    int64_t blocks() const { return (size + block_elements - 1) / block_elements; }
};

// Mirrored by `_Options` there.
struct SparseOptions {
    double inverse_scale;
    double momentum;
    double threshold;
};

namespace {

struct Factors {
    float inverse_scale, momentum;
};

inline float sum_at(const SparseRow& row, const Factors factors, int64_t i) {
    float x = row.gradient[i] * factors.inverse_scale;
    if (row.momentum) x = row.momentum[i] * factors.momentum + x;
    return row.residual ? row.residual[i] + x : x;
}

// Replaces gradients by what is to be sent or kept; gives the largest magnitude.
uint32_t add_up(
    float* __restrict gradient, const float* __restrict residual, const float* __restrict momentum,
    float* __restrict moved, const Factors factors, int64_t count
) {
    uint32_t highest = 0;
    for (int64_t i = 0; i < count; ++i) {
        float x = gradient[i] * factors.inverse_scale;
        if (momentum) moved[i] = x = momentum[i] * factors.momentum + x;
        if (residual) x = residual[i] + x;
        gradient[i] = x;
        highest = std::max(highest, magnitude_of(x));
    }
    return highest;
}

uint32_t add_up_tile(const SparseRow& row, const Factors factors, int64_t begin, int64_t count) {
    float* gradient = row.gradient + begin;
    if (row.momentum)
        return add_up(gradient, row.residual + begin, row.momentum + begin, row.moved + begin, factors, count);
    if (row.residual) return add_up(gradient, row.residual + begin, nullptr, nullptr, factors, count);
    return add_up(gradient, nullptr, nullptr, nullptr, factors, count);
}

// A magnitude, as bits, that more than `capacity` elements most likely reach: three deviations of the sample below
// theirs. 0 where a sample is not worth its while. One element of every stratum, so that no order deceives it.
uint32_t sampled_magnitude(const SparseRow& row, const Factors factors) {
    const int64_t samples = std::min<int64_t>(std::max<int64_t>(row.size / 256, 1024), 8192);
    const double expected = static_cast<double>(samples) * row.capacity / row.size;
    const int64_t rank = static_cast<int64_t>(std::ceil(expected + 3 * std::sqrt(expected))) + 1;
    const int64_t stratum = row.size / samples;
    if (stratum < 4 || rank >= samples) return 0;
    std::vector<uint32_t> magnitudes(samples);
    for (int64_t i = 0; i < samples; ++i) {
        const uint64_t random = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15 >> 32;
        magnitudes[i] = magnitude_of(sum_at(row, factors, i * stratum + random % stratum));
    }
    std::nth_element(magnitudes.begin(), magnitudes.begin() + rank, magnitudes.end(), std::greater<uint32_t>());
    return magnitudes[rank];
}

// Some blocks of a parameter, which one thread goes through.
struct Piece {
    const SparseRow* row;
    int64_t first_block;
    int64_t end_block;
    std::unique_ptr<Candidates> candidates;
    uint32_t highest = 0;

    int64_t begin() const { return first_block * block_elements; }
    int64_t end() const { return std::min(end_block * block_elements, row->size); }
};

// `summed`: whether gradients have been replaced before.
void list_candidates(Piece& piece, const Factors factors, uint32_t least, bool summed) {
    const SparseRow& row = *piece.row;
    const uint32_t beyond_all = 0xFFFFFFFF;
    const uint32_t lowest = row.capacity ? least : beyond_all;
    piece.candidates = std::make_unique<Candidates>(row.capacity, piece.end() - piece.begin(), lowest);
    for (int64_t block = piece.begin(); block < piece.end(); block += block_elements) {
        const int64_t end = std::min(block + block_elements, piece.end());
        for (int64_t begin = block; begin < end; begin += tile_elements) {
            const int64_t length = std::min(tile_elements, end - begin), next = begin + 4 * tile_elements;
            for (const float* array : std::initializer_list<const float*>{row.gradient, row.residual, row.momentum})
                if (array) prefetch(array, next, row.size, sizeof(float));
            if (!summed) piece.highest = std::max(piece.highest, add_up_tile(row, factors, begin, length));
            piece.candidates->add(row.gradient + begin, begin - block, length);
        }
        piece.candidates->end_block();
    }
}

std::vector<Piece> pieces_of(const SparseRow* rows, int64_t count, int threads) {
    int64_t blocks = 0;
    for (const SparseRow* row = rows; row != rows + count; ++row) blocks += row->blocks();
    const int64_t together = threads == 1 ? std::max<int64_t>(blocks, 1) : std::max<int64_t>(blocks / (8 * threads), 4);
    std::vector<Piece> pieces;
    for (const SparseRow* row = rows; row != rows + count; ++row)
        for (int64_t first = 0; first < row->blocks(); first += together)
            pieces.push_back({row, first, std::min(first + together, row->blocks()), nullptr});
    return pieces;
}

int64_t listed(const std::vector<Piece*>& pieces) {
    int64_t total = 0;
    for (const Piece* piece : pieces) total += piece->candidates->count();
    return total;
}

// Writes a parameter's section of the wire, and zeros where its elements were.
void send(const SparseRow& row, const std::vector<Piece*>& pieces) {
    uint32_t* counts = reinterpret_cast<uint32_t*>(row.section);
    float* values = reinterpret_cast<float*>(counts + row.blocks());
    uint16_t* offsets = reinterpret_cast<uint16_t*>(values + row.capacity);
    Cut cut = {0, row.capacity};
    if (listed(pieces) > row.capacity) {
        std::vector<const Candidates*> lists;
        for (const Piece* piece : pieces) lists.push_back(piece->candidates.get());
        cut = cut_of(lists, row.capacity);
    }
    int64_t sent = 0;
    std::fill_n(counts, row.blocks(), 0);
    for (const Piece* piece : pieces)
        piece->candidates->for_each([&](int64_t block, uint16_t offset, float value) {
            if (!cut.takes(value)) return;
            values[sent] = value;
            offsets[sent++] = offset;
            ++counts[piece->first_block + block];
            const int64_t index = (piece->first_block + block) * block_elements + offset;
            row.gradient[index] = 0;
            if (row.moved) row.moved[index] = 0;
        });
    std::fill(values + sent, values + row.capacity, 0.0f);
    std::fill(offsets + sent, offsets + (row.capacity + 1) / 2 * 2, 0);
}

}  // namespace

// Sets `overflow` to 1 where a sum is not finite. The same for any number of threads, as the cut is exact.
extern "C" void graphopt_sparsify(
    const SparseRow* rows, int64_t count, const SparseOptions* options, float* overflow, int threads
) {
    const Factors factors = {static_cast<float>(options->inverse_scale), static_cast<float>(options->momentum)};
    const uint32_t lowest = std::max<uint32_t>(bits_of(static_cast<float>(options->threshold)), 1);
    std::vector<uint32_t> least(count);
    std::vector<Piece> pieces = pieces_of(rows, count, threads);
    std::vector<std::vector<Piece*>> of_row(count);
    for (Piece& piece : pieces) of_row[piece.row - rows].push_back(&piece);
    const int64_t number = static_cast<int64_t>(pieces.size());
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; ++i)
            if (rows[i].size) least[i] = std::max(lowest, sampled_magnitude(rows[i], factors));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < number; ++i) list_candidates(pieces[i], factors, least[pieces[i].row - rows], false);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; ++i) {
            if (least[i] > lowest && listed(of_row[i]) < rows[i].capacity)
                for (Piece* piece : of_row[i]) list_candidates(*piece, factors, lowest, true);
            if (rows[i].size) send(rows[i], of_row[i]);
        }
    }
    for (const Piece& piece : pieces)
        if (piece.highest >= 0x7F800000) *overflow = 1;
}

// Gradients become scale × the sum of `copies` wires, `copy_bytes` from each other, added up in their order; `section`
// is in the first one.
extern "C" void graphopt_desparsify(
    const SparseRow* rows, int64_t count, int64_t copies, int64_t copy_bytes, double scale, int threads
) {
    const float factor = static_cast<float>(scale);
    for (const SparseRow* row = rows; row != rows + count; ++row) {
        std::vector<int64_t> begins(row->blocks() * copies);
        for (int64_t copy = 0; copy < copies; ++copy) {
            const uint32_t* counts = reinterpret_cast<const uint32_t*>(row->section + copy * copy_bytes);
            for (int64_t block = 0, begin = 0; block < row->blocks(); begin += counts[block++])
                begins[block * copies + copy] = begin;
        }
#pragma omp parallel for schedule(static) num_threads(threads) if (row->blocks() > 1)
        for (int64_t block = 0; block < row->blocks(); ++block) {
            float* gradient = row->gradient + block * block_elements;
            const int64_t length = std::min(block_elements, row->size - block * block_elements);
            std::memset(gradient, 0, length * sizeof(float));
            for (int64_t copy = 0; copy < copies; ++copy) {
                const uint32_t* counts = reinterpret_cast<const uint32_t*>(row->section + copy * copy_bytes);
                const float* values = reinterpret_cast<const float*>(counts + row->blocks());
                const uint16_t* offsets = reinterpret_cast<const uint16_t*>(values + row->capacity);
                const int64_t begin = begins[block * copies + copy], end = begin + counts[block];
                for (int64_t i = begin; i < end; ++i) gradient[offsets[i]] += values[i];
            }
            if (factor != 1)
                for (int64_t i = 0; i < length; ++i) gradient[i] *= factor;
        }
    }
}

}  // namespace graphopt
