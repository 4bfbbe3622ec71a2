// Half numbers to fp32 and back, to the nearest and ties to even, a tile at a time.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace graphopt {

// Mirrored by KINDS in pointers.py.
enum Kind : int64_t { fp32 = 0, fp16 = 1, bf16 = 2 };

inline int64_t bytes_of(int64_t kind) { return kind == fp32 ? 4 : 2; }

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void widen_fp16(const uint16_t* half, float* wide, int64_t count) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
    for (; i < count; ++i) wide[i] = _cvtsh_ss(half[i]);
#else
    for (; i < count; ++i) {
        _Float16 value;
        std::memcpy(&value, half + i, sizeof value);
        wide[i] = static_cast<float>(value);
    }
#endif
}

inline void narrow_fp16(const float* wide, uint16_t* half, int64_t count) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(half + i), _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT)
        );
    for (; i < count; ++i) half[i] = _cvtss_sh(wide[i], _MM_FROUND_TO_NEAREST_INT);
#else
    for (; i < count; ++i) {
        const _Float16 value = static_cast<_Float16>(wide[i]);
        std::memcpy(half + i, &value, sizeof value);
    }
#endif
}

inline void widen_bf16(const uint16_t* half, float* wide, int64_t count) {
    for (int64_t i = 0; i < count; ++i) wide[i] = from_bits(static_cast<uint32_t>(half[i]) << 16);
}

inline void narrow_bf16(const float* wide, uint16_t* half, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = bits_of(wide[i]);
        const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        half[i] = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
    }
}

// `count` elements from `begin` on as fp32: where they are, or, of half ones, in `tile`.
inline const float* widened(const void* source, int64_t kind, int64_t begin, int64_t count, float* tile) {
    if (kind == fp32) return static_cast<const float*>(source) + begin;
    const uint16_t* half = static_cast<const uint16_t*>(source) + begin;
    kind == fp16 ? widen_fp16(half, tile, count) : widen_bf16(half, tile, count);
    return tile;
}

inline void narrow(const float* wide, void* target, int64_t kind, int64_t begin, int64_t count) {
    uint16_t* half = static_cast<uint16_t*>(target) + begin;
    kind == fp16 ? narrow_fp16(wide, half, count) : narrow_bf16(wide, half, count);
}

}  // namespace graphopt
