// What must run so that values are there.
#pragma once

#include "problem.h"

class Missing {
  public:
    explicit Missing(const Problem &problem) : problem_(problem), needed_(problem.ops, 0) {}

    // Ops to run, in order, so that all that were wanted since the last call are there; good until the next call.
    const Ints &ops(const std::uint8_t *alive);
    void want(i64 value) { stack_.push_back(value); }
    void want_inputs(i64 op) { stack_.insert(stack_.end(), problem_.inputs.begin(op), problem_.inputs.end(op)); }

  private:
    const Problem &problem_;
    std::vector<char> needed_;
    Ints stack_, found_;
};
