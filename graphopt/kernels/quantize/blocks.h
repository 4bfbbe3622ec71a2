// Blocks of quantized gradients: blocks.py says what they look like on the wire.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../half.h"

namespace graphopt {

// Mirrored by `_rows` in cpu.py. `residual` may be null.
struct Quantized {
    int64_t size;
    int64_t kind;
    void* gradient;
    const float* residual;
};

constexpr int64_t block_elements = 512;
constexpr int64_t quarter = block_elements / 4;
constexpr int64_t step_bytes = 4;
constexpr int64_t chunk_blocks = 128;
constexpr float smallest = 0x1p-100f;
constexpr uint32_t bits_of_largest = 0x7F000000;  // of 2^127: as integers magnitudes are in order, and NaN is above all

constexpr int64_t block_bytes(int bits) { return step_bytes + block_elements * bits / 8; }
inline int64_t blocks_of(int64_t size) { return (size + block_elements - 1) / block_elements; }

// Blocks from `begin` to `end` of one parameter, the first of which is the `first`-th of all.
struct Blocks {
    const Quantized* row;
    int64_t begin, end, first;
};

// Those of the `from`-th to the `to`-th block that belong to parameters, in pieces of work. `behind` is the block after
// the last parameter's.
inline std::vector<Blocks> pieces_of(const Quantized* rows, int64_t count, int64_t from, int64_t to, int64_t& behind) {
    std::vector<Blocks> pieces;
    behind = 0;
    for (const Quantized* row = rows; row != rows + count; behind += blocks_of(row->size), ++row) {
        const int64_t last = std::min(blocks_of(row->size), to - behind);
        for (int64_t begin = std::max<int64_t>(from - behind, 0); begin < last; begin += chunk_blocks)
            pieces.push_back({row, begin, std::min(begin + chunk_blocks, last), behind + begin});
    }
    return pieces;
}

// Runs `work(row, block of the row, elements in it, block of all)` on every block.
template <typename Work>
void for_every_block(const std::vector<Blocks>& pieces, int threads, const Work& work) {
    const int64_t number = static_cast<int64_t>(pieces.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t index = 0; index < number; ++index) {
        const Blocks& piece = pieces[index];
        for (int64_t block = piece.begin; block < piece.end; ++block) {
            const int64_t left = piece.row->size - block * block_elements;
            work(*piece.row, block, std::min(left, block_elements), piece.first + block - piece.begin);
        }
    }
}

inline uint32_t largest_bits(const float* x) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < block_elements; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7FFFFFFF;
        largest = largest > bits ? largest : bits;
    }
    return largest;
}

// The step of a block whose largest magnitude has these bits; 0 where it sends zeros.
inline float step_of(uint32_t largest, float levels) {
    if (largest >= bits_of_largest || from_bits(largest) < smallest) return 0;
    return from_bits((bits_of(from_bits(largest) / levels) + 0xFF) & ~0xFFu);
}

// A whole block, line of the cache by line; the block after the next is asked for meanwhile, as the processor's own
// prefetching stops at every page of 4 KiB.
template <bool with_residual>
void load_lines(
    const float* __restrict gradient, const float* __restrict residual, const char* __restrict memory, int64_t width,
    float inverse_scale, float* __restrict x
) {
    constexpr int64_t line = 16;
    for (int64_t at = 0; at < block_elements; at += line) {
        __builtin_prefetch(memory + (2 * block_elements + at) * width);
        if (with_residual) __builtin_prefetch(residual + 2 * block_elements + at);
        for (int64_t i = at; i < at + line; ++i)
            x[i] = with_residual ? gradient[i] * inverse_scale + residual[i] : gradient[i] * inverse_scale;
    }
}

// gradient × inverse_scale + residual of one block, and zeros up to its end.
inline void load_block(const Quantized& row, int64_t block, int64_t count, float inverse_scale, float* x) {
    float tile[block_elements];
    const int64_t begin = block * block_elements, width = bytes_of(row.kind);
    const float* gradient = widened(row.gradient, row.kind, begin, count, tile);
    const float* residual = row.residual ? row.residual + begin : nullptr;
    const char* memory = static_cast<const char*>(row.gradient) + begin * width;
    if (count == block_elements) {
        if (residual) load_lines<true>(gradient, residual, memory, width, inverse_scale, x);
        else load_lines<false>(gradient, nullptr, memory, width, inverse_scale, x);
        return;
    }
    for (int64_t i = 0; i < count; ++i) x[i] = gradient[i] * inverse_scale;
    for (int64_t i = 0; residual && i < count; ++i) x[i] += residual[i];
    std::fill(x + count, x + block_elements, 0.0f);
}

// `times` x into the gradient.
inline void store_block(const Quantized& row, int64_t block, int64_t count, float times, float* __restrict x) {
    const int64_t begin = block * block_elements;
    if (row.kind == fp32) {
        float* __restrict target = static_cast<float*>(row.gradient) + begin;
        for (int64_t i = 0; i < count; ++i) target[i] = x[i] * times;
    } else {
        for (int64_t i = 0; i < count; ++i) x[i] *= times;
        narrow(x, row.gradient, row.kind, begin, count);
    }
}

inline void add_levels(const int8_t* __restrict levels, int64_t count, float step, bool first, float* __restrict total) {
    if (first)
        for (int64_t i = 0; i < count; ++i) total[i] = levels[i] * step;
    else
        for (int64_t i = 0; i < count; ++i) total[i] += levels[i] * step;
}

// Adds what a block of a wire stands for to `total`; the first one is written.
inline void receive(const uint8_t* wire, int bits, bool first, float* total) {
    float step;
    std::memcpy(&step, wire, sizeof step);
    wire += step_bytes;
    if (bits == 8) return add_levels(reinterpret_cast<const int8_t*>(wire), block_elements, step, first, total);
    const int64_t count = block_elements * bits / 8;
    for (int place = 0; place < 8 / bits; ++place) {
        int8_t levels[block_elements / 2];
        for (int64_t i = 0; i < count; ++i) {
            const int8_t top = static_cast<int8_t>(wire[i] << (8 - bits - place * bits));
            levels[i] = top >> (8 - bits);
        }
        add_levels(levels, count, step, first, total + place * count);
    }
}

}  // namespace graphopt
