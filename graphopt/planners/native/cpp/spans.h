// What a schedule keeps alive and when.
#pragma once

#include "problem.h"

struct Spans {
    const Problem *problem;
    Ints op;
    i64 length;
    // Each time a value is produced is a cell; those of step i are cell_at[i] to cell_at[i + 1].
    Ints cell_at, cell_value, cell_step, last;
    // Reads in the order of steps; those of step i are read_at[i] to read_at[i + 1], what is left at the end the last.
    Ints read_cell, read_step, read_at;
    // For each step the one before it that runs the same op, or -1; how often each op runs from where on in `runs`.
    Ints previous, memory;
    i64 peak = 0;
    double seconds = 0.0;

    Spans(const Problem &given, Ints schedule);

    // The reads of each cell, in the order of steps: reader[reader_at[c]] to reader[reader_at[c + 1]].
    void sort_reads(Ints &reader_at, Ints &reader) const;
    // Steps that run an op again; first position, and bytes, of what dropping each would keep alive until it.
    void recomputations(Ints &again, Ints &first, Ints &size) const;
    // For each step its seconds and those of recomputations that serve only it.
    std::vector<double> savings() const;

  private:
    void find_cells();
    void find_memory();
};

// The schedule without recomputations that nothing reads.
Spans without_idle(const Problem &problem, Ints schedule);
