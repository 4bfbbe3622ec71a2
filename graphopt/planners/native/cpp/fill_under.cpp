// Recomputations that can go while the peak stays under a level; PlainLoops.fill_under in ../plain.py says what it is.
#include <algorithm>

#include "profile.h"
#include "result.h"
#include "spans.h"

namespace {

// Recomputations to drop together, in the order of what they save per byte.
class Round {
  public:
    Round(const Spans &spans, i64 level) : spans_(spans), level_(level) { spans.recomputations(again_, first_, size_); }

    // The steps that go; none where nothing fits.
    Ints choose() const;

  private:
    const Spans &spans_;
    const i64 level_;
    Ints again_, first_, size_;

    Ints fitting() const;
};

Ints Round::fitting() const {
    const Ints &memory = spans_.memory;
    Ints live;
    for (std::size_t at = 0; at < again_.size(); ++at) {
        const i64 low = first_[at], high = again_[at];
        // Most do not fit at the ends of their gaps already.
        if (low < high && std::max(memory[low], memory[high - 1]) + size_[at] > level_) continue;
        if (size_[at] <= level_ && !any_above(memory.data(), low, high, level_ - size_[at])) live.push_back(at);
    }
    return live;
}

Ints Round::choose() const {
    Ints live = fitting();
    if (live.empty()) return live;
    const std::vector<double> saving = spans_.savings();
    std::vector<double> score(again_.size());
    for (i64 at : live) score[at] = saving[again_[at]] / static_cast<double>(std::max<i64>(size_[at], 1));
    std::stable_sort(live.begin(), live.end(), [&](i64 a, i64 b) { return score[a] > score[b]; });
    Ints memory = spans_.memory, gone;
    // Of one op a round drops one run at most: what the next one keeps alive would not be known.
    std::vector<char> taken(spans_.problem->ops, 0);
    for (i64 at : live) {
        const i64 low = first_[at], high = again_[at], op = spans_.op[high];
        if (taken[op] || any_above(memory.data(), low, high, level_ - size_[at])) continue;
        for (i64 step = low; step < high; ++step) memory[step] += size_[at];
        gone.push_back(high);
        taken[op] = 1;
    }
    return gone;
}

}  // namespace

// The length of the schedule without those recomputations.
extern "C" i64 graphopt_fill_under(const Problem *problem, const i64 *schedule, i64 length, i64 level) {
    Spans spans(*problem, Ints(schedule, schedule + length));
    while (true) {
        const Ints gone = Round(spans, level).choose();
        if (gone.empty()) break;
        std::vector<char> stays(spans.length, 1);
        for (i64 step : gone) stays[step] = 0;
        Ints left;
        for (i64 step = 0; step < spans.length; ++step)
            if (stays[step]) left.push_back(spans.op[step]);
        spans = without_idle(*problem, std::move(left));
    }
    return keep(std::move(spans.op));
}
