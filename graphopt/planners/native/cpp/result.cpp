#include "result.h"

#include <algorithm>

static thread_local Ints kept;

i64 keep(Ints schedule) {
    kept = std::move(schedule);
    return static_cast<i64>(kept.size());
}

// What this thread's last call found, into `found`.
extern "C" void graphopt_take(i64 *found) {
    std::copy(kept.begin(), kept.end(), found);
    kept = {};
}
