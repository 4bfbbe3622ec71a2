// Keep, one by one, what saves most seconds per byte; PlainLoops.fill in ../plain.py says what it is.
#include <algorithm>

#include "timeline.h"

namespace {

// A trajectory whose overhead is this many times that of a known curve, and this share of a step more, ends.
constexpr double FAR_ABOVE = 1.5, FAR_ABOVE_STEP = 0.01;

// Peaks, and seconds, of a curve that is known.
struct Known {
    const i64 *peaks;
    const double *seconds;
    i64 count;

    bool beats(i64 peak, double taken, double once) const {
        const i64 at = std::upper_bound(peaks, peaks + count, peak) - peaks - 1;
        return at >= 0 && taken > seconds[at] + (FAR_ABOVE - 1) * (seconds[at] - once) + FAR_ABOVE_STEP * once;
    }
};

// The recomputations that can still go: where each would hold memory, and what it would save.
class Candidates {
  public:
    explicit Candidates(const Spans &spans);

    Timeline line;
    i64 open;

    i64 count() const { return static_cast<i64>(step_.size()); }
    bool is_open(i64 row) const { return open_[row]; }
    // The first `most` in the order of what they save for what they take.
    Ints best(i64 most);
    // Drops one; all steps that went with it. The others are as they were until `refresh`.
    Ints drop(i64 row);
    // Measures anew what the readers of changed steps decide.
    void refresh();

  private:
    Ints step_, start_, bytes_, row_of_, stale_;
    std::vector<double> saving_, score_;
    std::vector<char> open_, is_stale_, seen_;

    void measure_gap(i64 step);
};

Candidates::Candidates(const Spans &spans)
    : line(spans), row_of_(spans.length, -1), is_stale_(spans.length, 0), seen_(spans.length, 0) {
    spans.recomputations(step_, start_, bytes_);
    open = count();
    for (i64 row = 0; row < count(); ++row) {
        row_of_[step_[row]] = row;
        saving_.push_back(line.saving(step_[row]));
    }
    open_.assign(count(), 1);
    score_.resize(count());
}

Ints Candidates::best(i64 most) {
    const i64 peak = line.memory.peak();
    const Maxima maxima(line.memory.memory());
    Ints live;
    for (i64 row = 0; row < count(); ++row) {
        if (!open_[row]) continue;
        const i64 over = std::max<i64>(maxima.of(start_[row], step_[row]) + bytes_[row] - peak, 0);
        score_[row] = saving_[row] / std::max(static_cast<double>(over + bytes_[row]) / 2, 1e-9);
        if (over == 0) score_[row] *= 1e12;
        live.push_back(row);
    }
    most = std::min(most, static_cast<i64>(live.size()));
    std::partial_sort(live.begin(), live.begin() + most, live.end(), [this](i64 a, i64 b) {
        return score_[a] != score_[b] ? score_[a] > score_[b] : a < b;
    });
    live.resize(most);
    return live;
}

Ints Candidates::drop(i64 row) {
    Ints gone, changed;
    line.drop(step_[row], gone, changed);
    for (i64 step : gone) {
        open_[row_of_[step]] = 0;
        --open;
        seen_[step] = 1;
    }
    for (i64 step : changed)
        if (!seen_[step] && !is_stale_[step]) is_stale_[step] = 1, stale_.push_back(step);
    for (i64 step : gone) seen_[step] = 0;
    return gone;
}

void Candidates::measure_gap(i64 step) {
    const i64 row = step < 0 ? -1 : row_of_[step];
    if (row >= 0 && open_[row]) line.gap(step, start_[row], bytes_[row]);
}

void Candidates::refresh() {
    for (i64 step : stale_) measure_gap(step), measure_gap(line.next[step]);
    Ints stack, looked_at;
    for (i64 step : stale_) line.add_readers(step, stack);
    stack.insert(stack.end(), stale_.begin(), stale_.end());
    for (i64 step : stale_) is_stale_[step] = 0;
    stale_.clear();
    while (!stack.empty()) {
        const i64 step = stack.back();
        stack.pop_back();
        if (step >= static_cast<i64>(row_of_.size()) || seen_[step]) continue;
        const i64 row = row_of_[step];
        if (row < 0 || !open_[row]) continue;
        seen_[step] = 1;
        looked_at.push_back(step);
        const double saving = line.saving(step);
        if (saving != saving_[row]) {
            saving_[row] = saving;
            line.add_readers(step, stack);
        }
    }
    for (i64 step : looked_at) seen_[step] = 0;
}

}  // namespace

// The trajectory of a schedule up to the one without recomputation, in `batches` batches at the least: the peak and
// the seconds after each move, and the move at which each step went. The number of moves.
extern "C" i64 graphopt_fill(
    const Problem *problem, const i64 *schedule, i64 length, i64 batches, const i64 *known_peaks,
    const double *known_seconds, i64 known, i64 *peaks, double *seconds, i64 *gone_at) {
    const Known curve{known_peaks, known_seconds, known};
    Candidates rows(Spans(*problem, Ints(schedule, schedule + length)));
    const i64 batch = 1 + rows.count() / batches;
    i64 moves = 0;
    while (rows.open && !curve.beats(rows.line.memory.peak(), rows.line.seconds, problem->total_seconds)) {
        rows.refresh();
        for (i64 row : rows.best(batch)) {
            if (!rows.is_open(row)) continue;
            for (i64 step : rows.drop(row)) gone_at[step] = moves;
            peaks[moves] = rows.line.memory.peak();
            seconds[moves++] = rows.line.seconds;
        }
    }
    return moves;
}
