// Ops moved one by one to where less is alive, as in ../plain_order.py.
#include <algorithm>
#include <cmath>

#include "result.h"

namespace {

// What a step costs is its share of the peak to this power; how far an op is moved at once; a move has to gain this much,
// where the highest step of the problem's own order costs 1.
constexpr double POWER = 6.0;
constexpr i64 FARTHEST = 200;
constexpr double LEAST_GAIN = 1e-6;

struct Place {
    double gain;
    i64 at;

    bool operator<(const Place &other) const { return gain != other.gain ? gain < other.gain : at < other.at; }
};

// A permutation of the ops and what is alive before each.
class Ordering {
  public:
    Ordering(const Problem &problem, const i64 *order);

    Ints order;

    Place best_later(i64 op);
    Place best_earlier(i64 op);
    void move(i64 op, i64 place);

  private:
    const Problem &problem;
    Ints where, made, own, freed, before;
    double peak;
    std::vector<char> kept, mark, passed;

    bool may_pass(i64 first, i64 second) const;
    i64 half(i64 op) const { return (op > problem.first_backward) - (op < problem.first_backward); }
    i64 freed_by(i64 op) const;
    void fill(i64 start, i64 stop);
    double cost(i64 alive, i64 op) const { return std::pow(static_cast<double>(alive + own[op]) / peak, POWER); }
    // Calls `each` for what both read and that dies with `second`, the later one.
    template <class Each> void dying(i64 first, i64 second, Each each);
};

Ordering::Ordering(const Problem &given, const i64 *first)
    : order(first, first + given.ops), problem(given), where(given.ops), made(given.ops, 0), own(given.ops),
      freed(given.ops), before(given.ops, 0), peak(1.0), kept(given.values, 0), mark(given.values, 0),
      passed(given.values, 0) {
    for (i64 at = 0; at < problem.outputs; ++at) kept[problem.output[at]] = 1;
    for (i64 at = 0; at < problem.ops; ++at) where[order[at]] = at;
    for (i64 op = 0; op < problem.ops; ++op) {
        for (i64 value : row(problem.made, op)) made[op] += problem.size[value];
        own[op] = made[op] + problem.workspace[op];
        freed[op] = freed_by(op);
    }
    fill(0, problem.ops);
    for (i64 at = 0; at < problem.ops; ++at)
        peak = std::max(peak, static_cast<double>(before[at] + own[order[at]]));
}

bool Ordering::may_pass(i64 first, i64 second) const {
    if (half(first) != half(second) || (problem.keeps_turn[first] && problem.keeps_turn[second])) return false;
    for (i64 value : row(problem.inputs, second))
        if (problem.producer[value] == first) return false;
    return true;
}

i64 Ordering::freed_by(i64 op) const {
    i64 bytes = 0;
    for (i64 value : row(problem.made, op))
        if (!kept[value] && !problem.readers.count(value)) bytes += problem.size[value];
    for (i64 value : row(problem.inputs, op)) {
        if (kept[value]) continue;
        bool dies = true;
        for (i64 reader : row(problem.readers, value)) dies = dies && where[reader] <= where[op];
        if (dies) bytes += problem.size[value];
    }
    return bytes;
}

void Ordering::fill(i64 start, i64 stop) {
    i64 alive = before[start];
    for (i64 place = start; place < stop; ++place) {
        before[place] = alive;
        alive += made[order[place]] - freed[order[place]];
    }
}

template <class Each> void Ordering::dying(i64 first, i64 second, Each each) {
    for (i64 value : row(problem.inputs, first)) mark[value] = 1;
    for (i64 value : row(problem.inputs, second)) {
        if (!mark[value] || kept[value]) continue;
        bool dies = true;
        for (i64 reader : row(problem.readers, value)) dies = dies && where[reader] <= where[second];
        if (dies) each(value);
    }
    for (i64 value : row(problem.inputs, first)) mark[value] = 0;
}

Place Ordering::best_later(i64 op) {
    const i64 at = where[op];
    i64 alive = before[at];
    double total = 0.0, here = cost(alive, op);
    Place best{0.0, at};
    for (i64 there = at + 1; there < std::min(problem.ops, at + FARTHEST); ++there) {
        const i64 other = order[there];
        if (!may_pass(op, other)) break;
        i64 shared = 0;
        dying(op, other, [&](i64 value) { shared += problem.size[value]; });
        const double old = here + cost(before[there], other), passing = cost(alive, other);
        alive += made[other] - freed[other] + shared;
        here = cost(alive, op);
        total += old - here - passing;
        if (total > best.gain) best = {total, there};
    }
    return best;
}

Place Ordering::best_earlier(i64 op) {
    const i64 at = where[op];
    i64 bytes = freed[op];
    double total = 0.0, here = cost(before[at], op);
    Place best{0.0, at};
    Ints seen;
    for (i64 there = at - 1; there > std::max<i64>(-1, at - FARTHEST); --there) {
        const i64 other = order[there];
        if (!may_pass(other, op)) break;
        // What another one that was passed reads too dies there already.
        dying(other, op, [&](i64 value) {
            if (passed[value]) return;
            passed[value] = 1, seen.push_back(value);
            bytes -= problem.size[value];
        });
        const i64 alive = before[there];
        const double old = here + cost(alive, other);
        here = cost(alive, op);
        total += old - here - cost(alive + made[op] - bytes, other);
        if (total > best.gain) best = {total, there};
    }
    for (i64 value : seen) passed[value] = 0;
    return best;
}

void Ordering::move(i64 op, i64 place) {
    const i64 at = where[op];
    if (at < place)
        std::rotate(order.begin() + at, order.begin() + at + 1, order.begin() + place + 1);
    else
        std::rotate(order.begin() + place, order.begin() + at, order.begin() + at + 1);
    const i64 low = std::min(at, place), high = std::max(at, place) + 1;
    for (i64 index = low; index < high; ++index) where[order[index]] = index;
    for (i64 index = low; index < high; ++index) freed[order[index]] = freed_by(order[index]);
    fill(low, high);
}

}  // namespace

// The length of the order with ops moved until no move gains anything or all `movable` ones were looked at so many times.
extern "C" i64 graphopt_reorder(
    const Problem *problem, const i64 *order, i64, const i64 *movable, i64 count, i64 passes) {
    Ordering ordering(*problem, order);
    for (i64 turn = 0; turn < passes; ++turn) {
        bool moved = false;
        for (i64 at = 0; at < count; ++at) {
            const i64 op = movable[at];
            const Place place = std::max(ordering.best_later(op), ordering.best_earlier(op));
            if (place.gain <= LEAST_GAIN) continue;
            ordering.move(op, place.at);
            moved = true;
        }
        if (!moved) break;
    }
    return keep(std::move(ordering.order));
}
