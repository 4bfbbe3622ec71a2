// Which of many numbers are the k largest in magnitude, found exactly without sorting.
//
// Magnitudes are compared as the integers that their bits are: they are in order, and NaN is above infinity.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../half.h"
#include "../tiles.h"

namespace graphopt {

constexpr int64_t block_elements = 1 << 16;

inline uint32_t magnitude_of(float value) { return bits_of(value) & 0x7FFFFFFF; }

// What is taken: every magnitude above `last`, and the first `ties` of those that are equal to it.
struct Cut {
    bool takes(float value) {
        const uint32_t magnitude = magnitude_of(value);
        return magnitude > last || (magnitude == last && ties-- > 0);
    }

    uint32_t last;
    int64_t ties;
};

// Elements of some blocks of a parameter that may be among its largest, in the order of memory: at most as many as
// there is room for, as those that cannot be are dropped when it runs out.
class Candidates {
public:
    // `least`: the least magnitude, as bits, that comes into question.
    Candidates(int64_t capacity, int64_t size, uint32_t least)
        : least_(least), capacity_(capacity),
          room_(std::min(std::max(2 * capacity, least_room), size) + tile_elements + overhang),
          values_(new float[room_]), offsets_(new uint16_t[room_]) {}

    void end_block() { ends_.push_back(count_); }

    // Up to `tile_elements` of a block, from `begin` in it on.
    void add(const float* x, int64_t begin, int64_t length) {
        if (count_ + length + overhang > room_) keep_largest();
        int64_t i = 0;
#if defined(__AVX512F__)
        const __m512i least = _mm512_set1_epi32(least_), magnitude = _mm512_set1_epi32(0x7FFFFFFF);
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (; i + 16 <= length; i += 16) {
            const __m512i bits = _mm512_loadu_si512(x + i);
            const __mmask16 found = _mm512_cmpge_epu32_mask(_mm512_and_si512(bits, magnitude), least);
            if (!found) continue;
            const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(begin + i));
            _mm512_storeu_si512(values_.get() + count_, _mm512_maskz_compress_epi32(found, bits));
            const __m256i offsets = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(found, places));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(offsets_.get() + count_), offsets);
            count_ += __builtin_popcount(found);
        }
#else
        for (; i + 16 <= length; i += 16) {
            uint32_t found = 0;
            for (int64_t lane = 0; lane < 16; ++lane) found |= magnitude_of(x[i + lane]) >= least_;
            if (found) add_each(x, begin, i, i + 16);
        }
#endif
        add_each(x, begin, i, length);
    }

    int64_t count() const { return count_; }

    // Calls `visit(block, offset, value)` for each, blocks counted from the first one added.
    template <typename Visit>
    void for_each(const Visit& visit) const {
        int64_t index = 0;
        for (size_t block = 0; block < ends_.size(); ++block)
            for (; index < ends_[block]; ++index) visit(static_cast<int64_t>(block), offsets_[index], values_[index]);
    }

    // Adds to a histogram, by `width` bits from `shift` on, the magnitudes that have all higher bits of `prefix`.
    void count_into(int64_t* histogram, int shift, int width, uint32_t prefix) const {
        for (int64_t i = 0; i < count_; ++i) {
            const uint32_t magnitude = magnitude_of(values_[i]);
            if (((magnitude ^ prefix) >> shift) >> width == 0) ++histogram[(magnitude >> shift) & ((1u << width) - 1)];
        }
    }

private:
    static constexpr int64_t overhang = 16;  // whole vectors are stored, of which the next one overwrites a part
    static constexpr int64_t least_room = 8192;

    void add_each(const float* x, int64_t begin, int64_t i, int64_t end) {
        for (; i < end; ++i) {
            values_[count_] = x[i];
            offsets_[count_] = static_cast<uint16_t>(begin + i);
            count_ += magnitude_of(x[i]) >= least_;
        }
    }

    void keep_largest();

    uint32_t least_;
    int64_t count_ = 0;
    const int64_t capacity_;
    const int64_t room_;
    std::unique_ptr<float[]> values_;
    std::unique_ptr<uint16_t[]> offsets_;
    std::vector<int64_t> ends_;  // of each whole block, in the arrays
};

// The cut that takes exactly `wanted` (at least one) of all that lists of candidates hold, which are more.
template <typename Lists>
Cut cut_of(const Lists& lists, int64_t wanted) {
    uint32_t prefix = 0;
    for (const auto [shift, width] : {std::pair<int, int>{20, 11}, {10, 10}, {0, 10}}) {
        int64_t histogram[1 << 11] = {};
        for (const Candidates* list : lists) list->count_into(histogram, shift, width, prefix);
        uint32_t bin = (1u << width) - 1;
        for (; histogram[bin] < wanted; --bin) wanted -= histogram[bin];
        prefix |= bin << shift;
    }
    return {prefix, wanted};
}

// Of equal ones the first stay, so that from now on only what is larger than the last of them can be among them.
inline void Candidates::keep_largest() {
    Cut cut = cut_of(std::initializer_list<const Candidates*>{this}, capacity_);
    least_ = cut.last + 1;
    int64_t kept = 0, index = 0;
    const auto keep_until = [&](int64_t end) {
        for (; index < end; ++index) {
            values_[kept] = values_[index];
            offsets_[kept] = offsets_[index];
            kept += cut.takes(values_[index]);
        }
    };
    for (int64_t& end : ends_) {
        keep_until(end);
        end = kept;
    }
    keep_until(count_);
    count_ = kept;
}

}  // namespace graphopt
