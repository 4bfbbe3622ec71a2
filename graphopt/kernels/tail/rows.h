// What cpu.py hands over: one row of pointers a parameter, and the chunks that rows are cut into.
#pragma once

#include <cstdint>
#include <vector>

#include "../tiles.h"

namespace graphopt {

// Mirrored by `_rows` in cpu.py. All of a row's arrays have `size` elements in one order in memory, but `step`, which
// has one; what an operation does not need is null.
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

inline std::vector<Chunk> chunks_of(const Row* rows, int64_t count) {
    std::vector<Chunk> chunks;
    for (const Row* row = rows; row != rows + count; ++row)
        for (int64_t begin = 0; begin < row->size; begin += chunk_elements)
            chunks.push_back({row, begin, begin + chunk_elements < row->size ? begin + chunk_elements : row->size});
    return chunks;
}

}  // namespace graphopt
