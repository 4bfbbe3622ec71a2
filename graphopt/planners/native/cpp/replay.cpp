// graphopt/planners/replay.py: all that was not kept is computed once more, when it is first read.
#include <algorithm>

#include "result.h"

// The length of the schedule that runs the first `end` ops, keeps what is `alive`, and then does so.
extern "C" i64 graphopt_recompute_once(const Problem *problem, i64 end, std::uint8_t *alive) {
    Ints schedule, stack, missing;
    std::vector<char> needed(problem->ops, 0);
    const auto look = [&](i64 op) {
        for (i64 value : row(problem->inputs, op))
            if (!alive[value]) stack.push_back(value);
    };
    const auto run = [&](i64 op) {
        schedule.push_back(op);
        for (i64 value : row(problem->made, op)) alive[value] = 1;
    };
    for (i64 op = 0; op < end; ++op) schedule.push_back(op);
    for (i64 op = end; op < problem->ops; ++op) {
        look(op);
        while (!stack.empty()) {
            const i64 maker = problem->producer[stack.back()];
            stack.pop_back();
            if (needed[maker]) continue;
            needed[maker] = 1;
            missing.push_back(maker);
            look(maker);
        }
        std::sort(missing.begin(), missing.end());
        for (i64 again : missing) {
            needed[again] = 0;
            run(again);
        }
        missing.clear();
        run(op);
    }
    return keep(std::move(schedule));
}
