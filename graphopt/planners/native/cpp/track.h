// A schedule in which steps come and go in some microseconds, with its memory kept exact. A step is known by its
// label; what a value's lives are follows from two sorted lists: when its op runs, and when it is read.
#pragma once

#include <initializer_list>

#include "problem.h"

// Greater than the labels of all steps before it. Room between two runs out; `renumber` makes new room.
using Label = i64;
using Labels = std::vector<Label>;

class Track {
  public:
    Track(const Problem &problem, const i64 *schedule, i64 length);

    const Problem &problem;
    double seconds;
    Label end;
    Labels labels;
    // By rank: the op, and the place in the search's list of recomputations (-1 for first runs). Bytes at the end last.
    Ints op, place, memory;
    // By op, and by value: when it runs, and when it is read.
    std::vector<Labels> runs, reads;

    // A copy of a value that is read at or before a label: last read before it, and of all.
    struct Life {
        Label before, last;
    };

    i64 count() const { return static_cast<i64>(labels.size()); }
    i64 rank(Label label) const;
    // The rank of a recomputation that is there, or -1.
    i64 rank_of_recomputation(Label label) const;
    Life life(i64 value, Label label) const;
    // Labels for so many steps right before one; none where numbers have run out.
    Labels room_before(Label label, i64 steps) const;
    // Spread the labels evenly again; `others` are labels of steps too, and are translated in place.
    void renumber(std::initializer_list<Labels *> others);
    // Run `id` at a free label; what reads its outputs later reads this copy. Its rank.
    i64 insert(Label label, i64 id);
    // Take out a recomputation; what read its outputs reads the copy before it.
    void erase(Label label);
    // Whether anything reads what the step at `label` makes.
    bool serves(Label label) const;

  private:
    // What is alive at an op's step, but not across it.
    Ints own_;

    void add(i64 low, i64 high, i64 bytes);
};
