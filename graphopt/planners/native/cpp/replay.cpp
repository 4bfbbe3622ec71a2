// Schedules from what to keep: graphopt/planners/replay_once.py and chain_actions.py.
#include "missing.h"
#include "result.h"

namespace {

constexpr i64 REACH = 0, FORGET = 1;

// Runs ops, and what they miss; `alive` is by value, the caller's.
struct Performance {
    const Problem &problem;
    const i64 end;
    std::uint8_t *alive;
    Missing missing;
    Ints schedule, here;

    void forward() {
        for (i64 op = 0; op < end; ++op) schedule.push_back(op);
    }

    void run(i64 op) {
        missing.want_inputs(op);
        for (i64 again : missing.ops(alive)) run_one(again);
        run_one(op);
    }

    void run_one(i64 op) {
        schedule.push_back(op);
        for (i64 value : row(problem.made, op)) {
            if (op < end && !alive[value]) here.push_back(value);
            alive[value] = 1;
        }
    }

    void reach(const i64 *first, const i64 *last) {
        if (schedule.empty()) {
            forward();
        } else {
            for (const i64 *value = first; value != last; ++value) missing.want(*value);
            const Ints &ops = missing.ops(alive);
            schedule.insert(schedule.end(), ops.begin(), ops.end());
        }
        for (const i64 *value = first; value != last; ++value) alive[*value] = 1;
    }

    void run_region(const i64 *first, const i64 *last) {
        here.clear();
        for (const i64 *op = first; op != last; ++op) run(*op);
        for (i64 value : here) alive[value] = 0;
    }
};

}  // namespace

// The length of the schedule that runs the first `end` ops, keeps what is `alive`, and computes all else once more.
extern "C" i64 graphopt_recompute_once(const Problem *problem, i64 end, std::uint8_t *alive) {
    Performance performance{*problem, end, alive, Missing(*problem), {}, {}};
    performance.forward();
    for (i64 op = end; op < problem->ops; ++op) performance.run(op);
    return keep(std::move(performance.schedule));
}

// The length of the schedule of some actions, each its kind, the number of its items, and those.
extern "C" i64 graphopt_perform(
    const Problem *problem, i64 end, std::uint8_t *alive, const i64 *actions, i64 count) {
    Performance performance{*problem, end, alive, Missing(*problem), {}, {}};
    for (const i64 *at = actions; at != actions + count;) {
        const i64 kind = at[0], *first = at + 2, *last = first + at[1];
        if (kind == REACH)
            performance.reach(first, last);
        else if (kind == FORGET)
            for (const i64 *value = first; value != last; ++value) alive[*value] = 0;
        else
            performance.run_region(first, last);
        at = last;
    }
    return keep(std::move(performance.schedule));
}
