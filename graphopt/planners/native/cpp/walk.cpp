// The ops walked under a limit; evicted is what costs least to have again: Kirisame et al., Dynamic Tensor
// Rematerialization (2021), section 2, with the root of the distance to the next read, which is known here, in the
// place of staleness.
#include <algorithm>
#include <cmath>

#include "result.h"

namespace {

// A walk that has computed again this many times what a step costs has lost its way; a relative change of a price
// that is not worth carrying on.
constexpr double GIVE_UP = 4.0, TOLERANCE = 0.2;
// Inputs that are looked at for prices: so many for each that ops name, and so many at all. Of the published graphs
// DenseNet-121 takes most, 967; where ops read thousands of values that come and go, it would be any number.
constexpr i64 WORK = 10000, MOST_WORK = i64{1} << 27;

// The rates of the values that can go, by which the one to go is found.
class Rates {
  public:
    explicit Rates(i64 values) : rate_(values, INFINITE), place_(values, -1) {}

    double operator[](i64 value) const { return rate_[value]; }
    void set(i64 value, double rate);
    // The value of the least rate for the root of the distance to its next read, the first of equals; -1 for none.
    i64 least(const Ints &next_use, i64 now) const;

  private:
    std::vector<double> rate_;
    // The values whose rates are finite, and their places in that list.
    Ints finite_, place_;
};

void Rates::set(i64 value, double rate) {
    rate_[value] = rate;
    const bool finite = rate < INFINITE;
    if (finite == (place_[value] >= 0)) return;
    if (finite) {
        place_[value] = static_cast<i64>(finite_.size());
        finite_.push_back(value);
    } else {
        const i64 other = finite_.back();
        finite_[place_[value]] = other;
        place_[other] = place_[value];
        finite_.pop_back();
        place_[value] = -1;
    }
}

i64 Rates::least(const Ints &next_use, i64 now) const {
    i64 found = -1;
    double best = INFINITE;
    for (i64 value : finite_) {
        const double score = rate_[value] / std::sqrt(static_cast<double>(next_use[value] - now));
        if (score < best || (score == best && found >= 0 && value < found)) best = score, found = value;
    }
    return found;
}

class Walk {
  public:
    Walk(const Problem &problem, i64 limit);

    // False where it recomputes, or looks for prices, without end.
    bool run();
    const Ints &schedule() const { return schedule_; }

  private:
    const Problem &problem_;
    const i64 limit_;
    Ints next_use_, read_, locked_, stack_, missing_;
    Rates rate_;
    std::vector<char> alive_, let_go_, needed_, output_;
    i64 live_ = 0, now_ = -1, work_left_;
    // What each value costs to have again, and what it adds to the price of those computed from it.
    std::vector<double> cost_, owed_;
    Ints schedule_;

    void find_missing(i64 op);
    void lock_inputs(i64 op);
    void run_op(i64 op);
    void make_room(i64 needed);
    void settle(i64 value);
    void release(i64 value);
    double price(i64 op) const;
    void reprice_readers(i64 changed);
};

Walk::Walk(const Problem &problem, i64 limit)
    : problem_(problem), limit_(limit), next_use_(problem.values, problem.ops), read_(problem.values, 0),
      locked_(problem.values, 0), rate_(problem.values), alive_(problem.values, 0), let_go_(problem.values, 0),
      needed_(problem.ops, 0), output_(problem.values, 0), cost_(problem.values, 0.0) {
    for (i64 value = 0; value < problem.values; ++value) {
        const i64 maker = problem.producer[value];
        if (maker < 0)
            alive_[value] = 1;
        else
            cost_[value] = problem.seconds[maker];
    }
    for (i64 at = 0; at < problem.outputs; ++at) output_[problem.output[at]] = 1;
    owed_ = cost_;
    work_left_ = std::min(WORK * (problem.ops + problem.inputs.at[problem.ops]), MOST_WORK);
}

// Ops to run, in order, so that all inputs of `op` are there.
void Walk::find_missing(i64 op) {
    missing_.clear(), stack_.clear();
    for (i64 value : row(problem_.inputs, op))
        if (!alive_[value]) stack_.push_back(value);
    while (!stack_.empty()) {
        const i64 maker = problem_.producer[stack_.back()];
        stack_.pop_back();
        if (needed_[maker]) continue;
        needed_[maker] = 1;
        missing_.push_back(maker);
        for (i64 value : row(problem_.inputs, maker))
            if (!alive_[value]) stack_.push_back(value);
    }
    for (i64 maker : missing_) needed_[maker] = 0;
    std::sort(missing_.begin(), missing_.end());
}

void Walk::lock_inputs(i64 op) {
    for (i64 value : row(problem_.inputs, op)) {
        ++locked_[value];
        rate_.set(value, INFINITE);
    }
}

bool Walk::run() {
    double allowance = GIVE_UP * problem_.total_seconds;
    for (i64 op = 0; op < problem_.ops; ++op) {
        find_missing(op);
        for (i64 again : missing_) lock_inputs(again);
        lock_inputs(op);
        const Ints missing = missing_;
        for (i64 again : missing) {
            allowance -= problem_.seconds[again];
            run_op(again);
        }
        now_ = op;
        run_op(op);
        if (allowance < 0 || work_left_ <= 0) return false;
    }
    return true;
}

void Walk::run_op(i64 op) {
    Ints born;
    i64 made = 0;
    for (i64 value : row(problem_.made, op))
        if (!alive_[value]) born.push_back(value), made += problem_.size[value];
    for (i64 value : row(problem_.inputs, op)) rate_.set(value, INFINITE);
    make_room(made + problem_.workspace[op]);
    schedule_.push_back(op);
    live_ += made;
    const double cost = price(op);
    for (i64 value : born) {
        alive_[value] = 1;
        cost_[value] = cost, owed_[value] = 0.0;
        reprice_readers(value);
    }
    for (i64 value : row(problem_.inputs, op)) --locked_[value];
    for (i64 value : row(problem_.inputs, op)) settle(value);
    for (i64 value : row(problem_.made, op)) settle(value);
}

void Walk::make_room(i64 needed) {
    while (live_ + needed > limit_) {
        const i64 victim = rate_.least(next_use_, now_);
        if (victim < 0) return;
        release(victim);
    }
}

// Free a value that nothing will read; otherwise say what its eviction would cost.
void Walk::settle(i64 value) {
    if (locked_[value]) return;
    const Row readers = row(problem_.readers, value);
    while (read_[value] < problem_.readers.count(value) && readers.begin()[read_[value]] <= now_) ++read_[value];
    const bool read_again = read_[value] < problem_.readers.count(value);
    if (!read_again && !output_[value]) {
        release(value);
    } else if (problem_.free[value] && !output_[value]) {
        next_use_[value] = read_again ? readers.begin()[read_[value]] : problem_.ops;
        rate_.set(value, cost_[value] / static_cast<double>(problem_.size[value]));
    }
}

void Walk::release(i64 value) {
    if (problem_.recomputable[problem_.producer[value]]) {
        alive_[value] = 0;
        owed_[value] = cost_[value];
        live_ -= problem_.size[value];
    } else if (!let_go_[value]) {
        // What cannot be made again stays within reach; a recomputation that reads it makes it live longer.
        let_go_[value] = 1;
        live_ -= problem_.size[value];
    }
    rate_.set(value, INFINITE);
    next_use_[value] = problem_.ops;
    reprice_readers(value);
}

// Seconds to have an op's outputs again: the op and what is missing of its inputs, all the way up.
double Walk::price(i64 op) const {
    double total = problem_.seconds[op];
    for (i64 value : row(problem_.inputs, op)) total += owed_[value];
    return std::min(total, problem_.total_seconds);
}

void Walk::reprice_readers(i64 changed) {
    stack_.assign(1, changed);
    while (!stack_.empty() && work_left_ > 0) {
        const Row readers = row(problem_.readers, stack_.back());
        stack_.pop_back();
        for (i64 reader : readers) {
            if (reader > now_) break;
            work_left_ -= 1 + problem_.inputs.count(reader);
            const double cost = price(reader), slack = TOLERANCE * cost;
            for (i64 value : row(problem_.made, reader)) {
                const double change = cost - cost_[value];
                if (-slack <= change && change <= slack) continue;
                cost_[value] = cost;
                if (!alive_[value]) {
                    owed_[value] = cost;
                    stack_.push_back(value);
                } else if (rate_[value] < INFINITE) {
                    rate_.set(value, cost / static_cast<double>(problem_.size[value]));
                }
            }
        }
    }
}

}  // namespace

// The length of a schedule that tries to stay under `limit` bytes, or -1 where it loses its way.
extern "C" i64 graphopt_walk(const Problem *problem, i64 limit) {
    Walk walk(*problem, limit);
    return walk.run() ? keep(walk.schedule()) : -1;
}
