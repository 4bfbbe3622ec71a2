// Gradients rounded at random to few bits: ops.py says what it means.

#include <atomic>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "blocks.h"

namespace graphopt {
namespace {

struct Key {
    uint32_t draw, seed, seed_high, rank;
};

// Numbers of 32 bits, each in the lower half of 64; what the upper halves hold does not matter.
typedef uint64_t Wide __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(32)));
constexpr uint32_t lanes = 8;

inline Wide product(Wide a, uint64_t b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Wide>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#else
    return (a & 0xFFFFFFFF) * b;
#endif
}

// Four random words for every fourth of a block, by Philox 4x32-10 (Salmon et al., SC 2011).
void random_words(uint32_t calls, uint32_t step, const Key key, uint32_t* __restrict words) {
    for (uint32_t lane = 0; lane < quarter; lane += lanes) {
        Wide a = Wide{0, 1, 2, 3, 4, 5, 6, 7} + (calls + lane), b = Wide{} + step;
        Wide c = Wide{} + key.draw, d = Wide{} + key.seed_high;
        uint32_t first = key.seed, second = key.rank;
        for (int round = 0; round < 10; ++round) {
            const Wide left = product(a, 0xD2511F53), right = product(c, 0xCD9E8D57);
            a = (right >> 32) ^ b ^ first;
            b = right;
            c = (left >> 32) ^ d ^ second;
            d = left;
            first += 0x9E3779B9;
            second += 0xBB67AE85;
        }
        uint32_t* to = words + lane;
        for (const Wide& word : {a, b, c, d}) {
            const Words low = __builtin_convertvector(word, Words);
            std::memcpy(to, &low, sizeof low);
            to += quarter;
        }
    }
}

// One of the two levels beside x / step, the nearer one the likelier.
void round_at_random(
    const float* __restrict x, float step, float most, const uint32_t* __restrict words, uint8_t* __restrict levels
) {
    const float inverse = 1 / step;
    for (int64_t i = 0; i < block_elements; ++i) {
        const float scaled = __builtin_fabsf(x[i] * inverse);
        const float magnitude = scaled > most ? most : scaled;
        const int32_t lower = static_cast<int32_t>(magnitude);
        const float random = static_cast<float>(static_cast<int32_t>(words[i] >> 8)) * 0x1p-24f;
        const int32_t level = lower + (random < magnitude - static_cast<float>(lower));
        levels[i] = static_cast<uint8_t>(x[i] < 0 ? -level : level);
    }
}

void pack(const uint8_t* __restrict levels, int bits, uint8_t* __restrict wire) {
    constexpr int64_t half = block_elements / 2;
    if (bits == 8) std::copy(levels, levels + block_elements, wire);
    else if (bits == 4)
        for (int64_t i = 0; i < half; ++i) wire[i] = (levels[i] & 15) | levels[i + half] << 4;
    else
        for (int64_t i = 0; i < quarter; ++i)
            wire[i] = (levels[i] & 3) | (levels[i + quarter] & 3) << 2 | (levels[i + half] & 3) << 4 |
                levels[i + half + quarter] << 6;
}

}  // namespace

extern "C" void graphopt_qsgd(
    const Quantized* rows, int64_t count, float* overflow, double inverse_scale, uint8_t* wire, int64_t blocks, int bits,
    int64_t seed, int64_t draw, int rank, int threads
) {
    int64_t behind;
    const std::vector<Blocks> pieces = pieces_of(rows, count, 0, blocks, behind);
    const float inverse = inverse_scale, most = (1 << (bits - 1)) - 1;
    const int64_t bytes = block_bytes(bits);
    const Key key{
        static_cast<uint32_t>(draw), static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
        static_cast<uint32_t>(rank)
    };
    std::atomic<bool> finite{true};
    for_every_block(pieces, threads, [&](const Quantized& row, int64_t block, int64_t length, int64_t of_all) {
        alignas(64) float x[block_elements];
        alignas(64) uint32_t words[block_elements];
        alignas(64) uint8_t levels[block_elements];
        load_block(row, block, length, inverse, x);
        const uint32_t largest = largest_bits(x);
        const float step = step_of(largest, most);
        if (largest >= bits_of_largest) finite = false;
        uint8_t* to = wire + of_all * bytes;
        if (step == 0) {
            std::memset(to, 0, bytes);
            return;
        }
        std::memcpy(to, &step, sizeof step);
        random_words(static_cast<uint32_t>(block * quarter), bits_of(step), key, words);
        round_at_random(x, step, most, words, levels);
        pack(levels, bits, to + step_bytes);
    });
    std::memset(wire + behind * bytes, 0, (blocks - behind) * bytes);
    if (!finite) *overflow = std::max(*overflow, 1.0f);
}

}  // namespace graphopt
