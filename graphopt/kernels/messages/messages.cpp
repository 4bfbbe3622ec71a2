// Sums of half messages: ops.py says what they mean.

#include <algorithm>
#include <cstdint>

#include "../half.h"
#include "../tiles.h"

namespace graphopt {

// `total` has `size` elements, and `received` `parts` times as many, all fp16 or all bf16.
extern "C" void graphopt_sum_parts(
    const void* received, int64_t kind, int64_t parts, void* total, int64_t size, int threads
) {
    const int64_t chunks = (size + chunk_elements - 1) / chunk_elements;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t end = std::min(size, (chunk + 1) * chunk_elements);
        float sum[tile_elements], tile[tile_elements];
        for (int64_t begin = chunk * chunk_elements; begin < end; begin += tile_elements) {
            const int64_t length = std::min(tile_elements, end - begin);
            std::copy_n(widened(received, kind, begin, length, tile), length, sum);
            for (int64_t part = 1; part < parts; ++part) {
                const float* other = widened(received, kind, part * size + begin, length, tile);
                for (int64_t i = 0; i < length; ++i) sum[i] += other[i];
            }
            narrow(sum, total, kind, begin, length);
        }
    }
}

}  // namespace graphopt
