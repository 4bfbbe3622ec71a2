// What Python hands over: one row of pointers a parameter, and the pieces of work that rows are cut into.
#pragma once

#include <cstdint>
#include <vector>

namespace graphopt {

enum Kind : int64_t { fp32 = 0, fp16 = 1, bf16 = 2 };

// Mirrored by ROW in graphopt/kernels/own.py. All of a row's arrays have `size` elements in one order in memory,
// but `step`, which has one; what an operation does not need is null.
struct Row {
    int64_t size;
    int64_t gradient_kind;
    const void* gradient;
    float* param;
    float* first;
    float* second;
    float* maximum;
    float* step;
    int64_t copy_kind;
    void* copy;
};

struct Chunk {
    const Row* row;
    int64_t begin;
    int64_t end;
};

// A chunk is what a thread takes at a time; a tile, what stays in its first-level cache between two loops.
constexpr int64_t chunk_elements = 1 << 16;
constexpr int64_t tile_elements = 1 << 7;

inline std::vector<Chunk> chunks_of(const Row* rows, int64_t count) {
    std::vector<Chunk> chunks;
    for (const Row* row = rows; row != rows + count; ++row)
        for (int64_t begin = 0; begin < row->size; begin += chunk_elements)
            chunks.push_back({row, begin, begin + chunk_elements < row->size ? begin + chunk_elements : row->size});
    return chunks;
}

// Asks for the tile that begins `begin` elements into an array, before it is read: the processor's own prefetching
// stops at every page of 4 KiB. Inlined by force: gcc takes a function that only prefetches for one without effect.
__attribute__((always_inline)) inline void prefetch(const void* array, int64_t begin, int64_t size, int64_t element_bytes) {
    if (begin + tile_elements > size) return;
    const char* first = static_cast<const char*>(array) + begin * element_bytes;
    for (int64_t offset = 0; offset < tile_elements * element_bytes; offset += 64) __builtin_prefetch(first + offset);
}

inline int64_t bytes_of(int64_t kind) { return kind == fp32 ? 4 : 2; }

}  // namespace graphopt
