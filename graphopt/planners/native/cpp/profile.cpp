#include "profile.h"

WIDE_VECTORS i64 highest(const i64 *memory, i64 low, i64 high) {
    i64 most = 0;
    for (i64 at = low; at < high; ++at) most = memory[at] > most ? memory[at] : most;
    return most;
}

WIDE_VECTORS bool any_above(const i64 *memory, i64 low, i64 high, i64 level) {
    constexpr i64 BLOCK = 64;
    i64 at = low;
    for (; at + BLOCK <= high; at += BLOCK) {
        i64 most = memory[at];
        for (i64 k = 1; k < BLOCK; ++k) most = memory[at + k] > most ? memory[at + k] : most;
        if (most > level) return true;
    }
    for (; at < high; ++at)
        if (memory[at] > level) return true;
    return false;
}

WIDE_VECTORS static void pairwise_maxima(const i64 *from, i64 *to, i64 length, i64 half) {
    for (i64 at = 0; at < length; ++at) to[at] = from[at] > from[at + half] ? from[at] : from[at + half];
}

Maxima::Maxima(const Ints &memory) : length_(static_cast<i64>(memory.size())) {
    int levels = 1;
    while ((i64{1} << levels) <= length_) ++levels;
    table_.resize(static_cast<std::size_t>(levels * length_));
    std::copy(memory.begin(), memory.end(), table_.begin());
    for (int level = 1; level < levels; ++level) {
        const i64 half = i64{1} << (level - 1);
        const i64 *from = table_.data() + (level - 1) * length_;
        pairwise_maxima(from, table_.data() + level * length_, length_ - 2 * half + 1, half);
    }
}

Profile::Profile(const Ints &memory)
    : memory_(memory), top_((memory.size() + BLOCK - 1) / BLOCK, 0), stale_(top_.size(), 1) {}

WIDE_VECTORS static void raise(i64 *memory, i64 low, i64 high, i64 bytes) {
    for (i64 at = low; at < high; ++at) memory[at] += bytes;
}

void Profile::add(i64 low, i64 high, i64 bytes) {
    high = std::min(high, static_cast<i64>(memory_.size()));
    if (high <= low) return;
    raise(memory_.data(), low, high, bytes);
    for (i64 block = low / BLOCK; block <= (high - 1) / BLOCK; ++block) stale_[block] = 1;
}

i64 Profile::peak() {
    const i64 length = static_cast<i64>(memory_.size());
    i64 most = 0;
    for (std::size_t block = 0; block < top_.size(); ++block) {
        if (stale_[block]) {
            const i64 low = static_cast<i64>(block) * BLOCK;
            top_[block] = highest(memory_.data(), low, std::min(length, low + BLOCK));
            stale_[block] = 0;
        }
        most = std::max(most, top_[block]);
    }
    return most;
}
