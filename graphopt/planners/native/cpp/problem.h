// The problem as arrays, as graphopt/planners/native/tables.py lays them out. Resident values are left out of inputs.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

using i64 = std::int64_t;
using Ints = std::vector<i64>;

constexpr double INFINITE = std::numeric_limits<double>::infinity();

// Rows of numbers one behind the other: row i is at[i] to at[i + 1].
struct Rows {
    const i64 *at, *item;

    const i64 *begin(i64 row) const { return item + at[row]; }
    const i64 *end(i64 row) const { return item + at[row + 1]; }
    i64 count(i64 row) const { return at[row + 1] - at[row]; }
};

struct Row {
    const i64 *first, *last;

    const i64 *begin() const { return first; }
    const i64 *end() const { return last; }
};

inline Row row(const Rows &rows, i64 number) { return {rows.begin(number), rows.end(number)}; }

struct Problem {
    i64 ops, values, outputs, first_backward;
    double total_seconds;
    const double *seconds;                   // by op
    const i64 *workspace, *all_inputs;       // by op; the number of inputs, resident ones too
    const i64 *recomputable, *repeatable;    // by op; `repeatable`: and no output is held
    const i64 *keeps_turn;                   // by op: pinned, or not recomputable
    const i64 *size, *producer, *slot;       // by value; the place among its op's outputs
    const i64 *free;                         // by value: has bytes, and is not held
    const i64 *output;                       // values that are there at the end
    Rows inputs, made, readers;
};
