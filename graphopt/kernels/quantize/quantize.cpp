// Gradients as 8-bit integers and back: ops.py says what each function means.

#include <atomic>
#include <cmath>
#include <limits>

#include "blocks.h"

namespace graphopt {
namespace {

constexpr int64_t bytes = block_bytes(8);
constexpr float most = 127;
// Added to a small number it leaves the nearest integer, ties to even, in the low bits.
constexpr float rounder = 0x1.8p23f;

// Writes the block `x` to the wire and what is left of it into `kept`; `step` is not 0.
void send(const float* __restrict x, float step, uint8_t* __restrict wire, float* __restrict kept) {
    const float inverse = 1 / step;
    std::memcpy(wire, &step, sizeof step);
    wire += step_bytes;
    for (int64_t i = 0; i < block_elements; ++i) {
        const float rounded = x[i] * inverse + rounder;
        uint32_t bits;
        std::memcpy(&bits, &rounded, sizeof bits);
        wire[i] = static_cast<uint8_t>(bits);
        kept[i] = x[i] - (rounded - rounder) * step;
    }
}

}  // namespace

extern "C" void graphopt_quantize(
    const Quantized* rows, int64_t count, float* overflow, double inverse_scale, uint8_t* wire, int64_t blocks, int threads
) {
    int64_t behind;
    const std::vector<Blocks> pieces = pieces_of(rows, count, 0, blocks, behind);
    const float inverse = inverse_scale;
    std::atomic<bool> finite{true};
    for_every_block(pieces, threads, [&](const Quantized& row, int64_t block, int64_t length, int64_t of_all) {
        alignas(64) float x[block_elements];
        alignas(64) float kept[block_elements];
        load_block(row, block, length, inverse, x);
        const uint32_t largest = largest_bits(x);
        const float step = step_of(largest, most);
        if (largest >= bits_of_largest) finite = false;
        uint8_t* to = wire + of_all * bytes;
        float* gradient = static_cast<float*>(row.gradient) + block * block_elements;
        if (step == 0) {
            std::memset(to, 0, bytes);
            std::copy(x, x + length, gradient);
        } else if (length == block_elements) {
            send(x, step, to, gradient);
        } else {
            send(x, step, to, kept);
            std::copy(kept, kept + length, gradient);
        }
    });
    std::memset(wire + behind * bytes, 0, (blocks - behind) * bytes);
    if (!finite) *overflow = std::max(*overflow, 1.0f);
}

// `part` are `parts` wires of `blocks` blocks each, which are the `from`-th of all and those behind it.
extern "C" void graphopt_requantize(
    const uint8_t* part, const Quantized* rows, int64_t count, int64_t from, int64_t blocks, int64_t parts, uint8_t* wire,
    int threads
) {
    int64_t behind;
    const std::vector<Blocks> pieces = pieces_of(rows, count, from, from + blocks, behind);
    for_every_block(pieces, threads, [&](const Quantized& row, int64_t block, int64_t length, int64_t of_all) {
        alignas(64) float total[block_elements];
        alignas(64) float error[block_elements];
        const int64_t here = of_all - from;
        for (int64_t i = 0; i < parts; ++i) receive(part + (i * blocks + here) * bytes, 8, i == 0, total);
        const uint32_t largest = largest_bits(total);
        const float step = step_of(largest, most);
        uint8_t* to = wire + here * bytes;
        if (step == 0) {
            const float sent = largest >= bits_of_largest ? std::numeric_limits<float>::infinity() : 0;
            std::memset(to, 0, bytes);
            std::memcpy(to, &sent, sizeof sent);
            if (sent != 0) return;
        }
        if (step != 0) send(total, step, to, error);
        const float* left = step != 0 ? error : total;
        float* gradient = static_cast<float*>(row.gradient) + block * block_elements;
        for (int64_t i = 0; i < length; ++i) gradient[i] += left[i];
    });
    const int64_t filled = std::min(std::max<int64_t>(behind - from, 0), blocks);
    std::memset(wire + filled * bytes, 0, (blocks - filled) * bytes);
}

// Wires of any number of bits a level.
extern "C" void graphopt_dequantize(
    const uint8_t* wire, const Quantized* rows, int64_t count, int64_t copies, int64_t blocks, int bits, double scale,
    int threads
) {
    int64_t behind;
    const std::vector<Blocks> pieces = pieces_of(rows, count, 0, blocks, behind);
    const float times = scale;
    for_every_block(pieces, threads, [&](const Quantized& row, int64_t block, int64_t length, int64_t of_all) {
        alignas(64) float total[block_elements];
        for (int64_t i = 0; i < copies; ++i) receive(wire + (i * blocks + of_all) * block_bytes(bits), bits, i == 0, total);
        store_block(row, block, length, times, total);
    });
}

}  // namespace graphopt
