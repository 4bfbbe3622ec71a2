// A schedule that can lose recomputations one by one, with its memory kept exact. A step that went stays as a
// position at which only the values that live across it count: never more than at its neighbours.
#pragma once

#include "profile.h"
#include "spans.h"

class Timeline {
  public:
    explicit Timeline(const Spans &spans);

    Profile memory;
    double seconds;
    // The step before, and after, that runs the same op; -1 where there is none.
    Ints previous, next;

    // First position, and bytes, of what dropping a step keeps alive until it.
    void gap(i64 step, i64 &first, i64 &bytes) const;
    // Seconds that dropping a step saves: its own and those of steps that served only it.
    double saving(i64 step);
    // Delete a step and whatever served only it: adds to the steps that went, and to those whose readers changed.
    void drop(i64 step, Ints &gone, Ints &changed);
    // Adds who reads any of a step's outputs.
    void add_readers(i64 step, Ints &readers) const;

  private:
    static constexpr std::size_t LIMIT = 400;
    const Problem &problem_;
    Ints op_, reads_, cell_at_, step_of_, size_;
    // For each cell its readers, in order; for each recomputation the cells that it reads.
    std::vector<Ints> readers_, sources_;
    // Reads that are left of a step's outputs while a saving is added up, good where `asked_` is `question_`.
    Ints left_, asked_, stack_;
    i64 question_ = 0;

    void keep_alive(i64 step);
    void unlink(i64 step);
    void lose_reader(i64 cell, i64 reader);
};
