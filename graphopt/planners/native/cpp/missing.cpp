#include "missing.h"

#include <algorithm>

const Ints &Missing::ops(const std::uint8_t *alive) {
    found_.clear();
    while (!stack_.empty()) {
        const i64 value = stack_.back(), maker = problem_.producer[value];
        stack_.pop_back();
        if (alive[value] || needed_[maker]) continue;
        needed_[maker] = 1;
        found_.push_back(maker);
        want_inputs(maker);
    }
    for (i64 op : found_) needed_[op] = 0;
    std::sort(found_.begin(), found_.end());
    return found_;
}
