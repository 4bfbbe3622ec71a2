// The pieces that long arrays are worked through in.
#pragma once

#include <cstdint>

namespace graphopt {

// A chunk is what a thread takes at a time; a tile, what stays in its first-level cache between two loops.
constexpr int64_t chunk_elements = 1 << 16;
constexpr int64_t tile_elements = 1 << 7;

// Asks for the tile that begins `begin` elements into an array, before it is read: the processor's own prefetching
// stops at every page of 4 KiB. Inlined by force: gcc takes a function that only prefetches for one without effect.
__attribute__((always_inline)) inline void prefetch(const void* array, int64_t begin, int64_t size, int64_t element_bytes) {
    if (begin + tile_elements > size) return;
    const char* first = static_cast<const char*>(array) + begin * element_bytes;
    for (int64_t offset = 0; offset < tile_elements * element_bytes; offset += 64) __builtin_prefetch(first + offset);
}

}  // namespace graphopt
