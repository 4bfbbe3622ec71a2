// Prices on the rows of a linear programme, min c x with A x <= b and l <= x <= 1, that prove much: primal-dual steps
// (Chambolle and Pock, 2011) with step sizes by row and column (Pock and Chambolle, 2011), each taken twice as far and
// drawn back to where it began (Halpern), with restarts: Lu and Yang, Restarted Halpern PDHG for Linear Programming (2024).
#include <algorithm>
#include <cmath>

#include "problem.h"

namespace {

using Floats = std::vector<double>;

// Steps between two looks at what the prices prove; a look restarts where a step leads only this share as far as the
// first one did, or the second share and farther than at the last look, or at the latest after this share of all steps.
constexpr i64 EVERY = 40;
constexpr double MUCH = 0.2, SOME = 0.8, LATEST = 0.36;
// First ratio of the steps of prices to those of variables: of 1, 10 and 30 the best on most of five models.
constexpr double FIRST_RATIO = 10.0;

// A sparse matrix by rows or by columns.
struct Sparse {
    std::vector<std::int32_t> at, other;
    Floats factor;

    Sparse(const i64 *line, const i64 *across, const double *factors, i64 entries, i64 lines)
        : at(lines + 1, 0), other(entries), factor(entries) {
        for (i64 e = 0; e < entries; ++e) ++at[line[e] + 1];
        for (i64 i = 0; i < lines; ++i) at[i + 1] += at[i];
        std::vector<std::int32_t> next(at.begin(), at.end() - 1);
        for (i64 e = 0; e < entries; ++e) {
            const std::int32_t place = next[line[e]]++;
            other[place] = static_cast<std::int32_t>(across[e]), factor[place] = factors[e];
        }
    }
    i64 lines() const { return static_cast<i64>(at.size()) - 1; }
    double times(i64 i, const Floats &x) const {
        double sum = 0.0;
        for (std::int32_t e = at[i]; e < at[i + 1]; ++e) sum += factor[e] * x[other[e]];
        return sum;
    }
    Floats steps() const {
        Floats found(lines());
        for (i64 i = 0; i < lines(); ++i) {
            double sum = 0.0;
            for (std::int32_t e = at[i]; e < at[i + 1]; ++e) sum += std::fabs(factor[e]);
            found[i] = 1.0 / std::max(sum, 1e-9);
        }
        return found;
    }
};

double distance(const Floats &a, const Floats &b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return std::sqrt(sum);
}

class Search {
  public:
    Search(const Sparse &rows, const Sparse &columns, const double *costs, const double *least, const double *limits)
        : rows_(rows), columns_(columns), costs_(costs, costs + columns.lines()),
          least_(least, least + columns.lines()), limits_(limits, limits + rows.lines()), row_step_(rows.steps()),
          column_step_(columns.steps()), x_(least_), y_(limits_.size(), 0.0), x_start_(x_), y_start_(y_), x_next_(x_),
          y_next_(y_), ahead_(x_.size()) {}

    // The prices that prove most of those that were looked at.
    Floats run(i64 steps) {
        Floats best = y_;
        double most = proven(y_), first = 0.0, last = INFINITE;
        for (i64 step = 1; step <= steps; ++step) {
            advance();
            if (count_ == 0.0) first = moved(), last = INFINITE;
            if (step % EVERY == 0 || step == steps) {
                const double bound = proven(y_next_), far = moved();
                if (bound > most) most = bound, best = y_next_;
                const bool is_nearer = far < MUCH * first || (far < SOME * first && far > last);
                last = far;
                if (is_nearer || count_ > LATEST * static_cast<double>(step)) {
                    restart();
                    continue;
                }
            }
            draw_back();
        }
        return best;
    }

  private:
    const Sparse &rows_, &columns_;
    const Floats costs_, least_, limits_, row_step_, column_step_;
    // Where it is, where it began, and where a step leads.
    Floats x_, y_, x_start_, y_start_, x_next_, y_next_, ahead_;
    double ratio_ = FIRST_RATIO, count_ = 0.0;

    void advance() {
        for (std::size_t i = 0; i < x_.size(); ++i) {
            const double towards = x_[i] - column_step_[i] / ratio_ * (costs_[i] + columns_.times(i, y_));
            x_next_[i] = std::min(std::max(towards, least_[i]), 1.0);
            ahead_[i] = 2.0 * x_next_[i] - x_[i];
        }
        for (std::size_t i = 0; i < y_.size(); ++i) {
            const double over = rows_.times(i, ahead_) - limits_[i];
            y_next_[i] = std::max(0.0, y_[i] + row_step_[i] * ratio_ * over);
        }
    }

    // Twice as far as the step, and a little back to the beginning, less each time.
    void draw_back() {
        const double share = 1.0 / (count_ + 2.0);
        for (std::size_t i = 0; i < x_.size(); ++i) x_[i] = (1.0 - share) * ahead_[i] + share * x_start_[i];
        for (std::size_t i = 0; i < y_.size(); ++i)
            y_[i] = (1.0 - share) * (2.0 * y_next_[i] - y_[i]) + share * y_start_[i];
        count_ += 1.0;
    }

    void restart() {
        const double moved = distance(x_next_, x_start_), prices = distance(y_next_, y_start_);
        if (std::min(moved, prices) > 1e-9) ratio_ = std::sqrt(ratio_ * prices / moved);
        x_ = x_start_ = x_next_, y_ = y_start_ = y_next_, count_ = 0.0;
    }

    // How far the step leads.
    double moved() const {
        double sum = 0.0;
        for (std::size_t i = 0; i < x_.size(); ++i)
            sum += ratio_ / column_step_[i] * (x_next_[i] - x_[i]) * (x_next_[i] - x_[i]);
        for (std::size_t i = 0; i < y_.size(); ++i)
            sum += (y_next_[i] - y_[i]) * (y_next_[i] - y_[i]) / (ratio_ * row_step_[i]);
        return std::sqrt(sum);
    }

    double proven(const Floats &y) const {
        double bound = 0.0;
        for (std::size_t i = 0; i < x_.size(); ++i) {
            const double charge = costs_[i] + columns_.times(i, y);
            bound += std::min(charge, charge * least_[i]);
        }
        for (std::size_t i = 0; i < y.size(); ++i) bound -= y[i] * limits_[i];
        return bound;
    }
};

}  // namespace

// Entries of the matrix by row, column and factor; costs should be about 1. Writes a price for each row.
extern "C" void graphopt_prices(
    i64 entries, const i64 *row, const i64 *column, const double *factor, i64 rows, const double *limits, i64 columns,
    const double *costs, const double *least, i64 steps, double *prices) {
    const Sparse by_row(row, column, factor, entries, rows), by_column(column, row, factor, entries, columns);
    const Floats best = Search(by_row, by_column, costs, least, limits).run(steps);
    std::copy(best.begin(), best.end(), prices);
}
