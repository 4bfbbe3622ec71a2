// The bytes at each step of a schedule alone, in one pass from its end: who reads what is known then.
#include <algorithm>

#include "problem.h"

// Bytes at each step into `memory`, and the seconds; the peak.
extern "C" i64 graphopt_profile(
    const Problem *problem, const i64 *schedule, i64 length, i64 *memory, double *seconds) {
    std::vector<char> read_later(problem->values, 0);
    i64 alive = 0, peak = 0;
    for (i64 at = 0; at < problem->outputs; ++at) {
        read_later[problem->output[at]] = 1;
        alive += problem->size[problem->output[at]];
    }
    for (i64 step = length - 1; step >= 0; --step) {
        const i64 op = schedule[step];
        i64 made = 0, unread = 0, dying = 0;
        for (i64 value : row(problem->made, op)) {
            (read_later[value] ? made : unread) += problem->size[value];
            read_later[value] = 0;
        }
        for (i64 value : row(problem->inputs, op)) {
            if (!read_later[value]) dying += problem->size[value];
            read_later[value] = 1;
        }
        memory[step] = alive + unread + dying + problem->workspace[op];
        peak = std::max(peak, memory[step]);
        alive += dying - made;
    }
    *seconds = 0.0;
    for (i64 step = 0; step < length; ++step) *seconds += problem->seconds[schedule[step]];
    return peak;
}
