// Bytes at each step: stretches raised and lowered, and their maxima.
#pragma once

#include <algorithm>

#include "problem.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define WIDE_VECTORS
#endif

// The greatest of memory[low:high]; 0 where it is empty, as bytes are never negative.
i64 highest(const i64 *memory, i64 low, i64 high);
// Whether any of memory[low:high] is above a level.
bool any_above(const i64 *memory, i64 low, i64 high, i64 level);

// The greatest element of any stretch of a row that does not change (a sparse table).
class Maxima {
  public:
    explicit Maxima(const Ints &memory);
    i64 of(i64 low, i64 high) const {
        if (high <= low) return 0;
        const int level = 63 - __builtin_clzll(static_cast<unsigned long long>(high - low));
        const i64 *table = table_.data() + level * length_;
        return std::max(table[low], table[high - (i64{1} << level)]);
    }

  private:
    i64 length_;
    Ints table_;
};

// A row whose highest element is known all the time: only blocks that were changed are looked at again.
class Profile {
  public:
    explicit Profile(const Ints &memory);
    void add(i64 low, i64 high, i64 bytes);
    i64 peak();
    const Ints &memory() const { return memory_; }

  private:
    static constexpr i64 BLOCK = 256;
    Ints memory_, top_;
    std::vector<char> stale_;
};
