#include "track.h"

#include <algorithm>

#include "spans.h"

namespace {

constexpr Label SPACE = Label{1} << 40;

i64 bisect_left(const Labels &labels, Label label) {
    return std::lower_bound(labels.begin(), labels.end(), label) - labels.begin();
}

void insort(Labels &labels, Label label) { labels.insert(std::upper_bound(labels.begin(), labels.end(), label), label); }

void remove(Labels &labels, Label label) { labels.erase(labels.begin() + bisect_left(labels, label)); }

}  // namespace

Track::Track(const Problem &given, const i64 *schedule, i64 length)
    : problem(given), end(SPACE * (length + 1)), op(schedule, schedule + length), place(length, -1),
      runs(given.ops), reads(given.values), own_(given.ops) {
    const Spans spans(problem, op);
    seconds = spans.seconds;
    memory = spans.memory;
    memory.push_back(0);
    for (i64 id = 0; id < problem.ops; ++id) {
        own_[id] = problem.workspace[id];
        for (i64 value : row(problem.made, id)) own_[id] += problem.size[value];
    }
    for (i64 step = 0; step < length; ++step) {
        labels.push_back(SPACE * (step + 1));
        runs[op[step]].push_back(labels.back());
        for (i64 value : row(problem.inputs, op[step])) reads[value].push_back(labels.back());
    }
    for (i64 at = 0; at < problem.outputs; ++at) {
        reads[problem.output[at]].push_back(end);
        memory.back() += problem.size[problem.output[at]];
    }
}

i64 Track::rank(Label label) const { return bisect_left(labels, label); }

i64 Track::rank_of_recomputation(Label label) const {
    const i64 at = rank(label);
    return at < count() && labels[at] == label && place[at] >= 0 ? at : -1;
}

void Track::add(i64 low, i64 high, i64 bytes) {
    for (i64 at = low; at < high; ++at) memory[at] += bytes;
}

Track::Life Track::life(i64 value, Label label) const {
    const Labels &made = runs[problem.producer[value]], &read = reads[value];
    const i64 at = bisect_left(made, label), first = bisect_left(read, label);
    const Label born = made[at - 1], before = first && read[first - 1] > born ? read[first - 1] : born;
    const i64 last = at == static_cast<i64>(made.size()) ? static_cast<i64>(read.size()) : bisect_left(read, made[at]);
    return {before, last > first ? read[last - 1] : before};
}

Labels Track::room_before(Label label, i64 steps) const {
    const i64 at = rank(label);
    const Label low = at ? labels[at - 1] : 0, gap = (label - low) / (steps + 1);
    Labels room;
    if (gap)
        for (i64 step = 0; step < steps; ++step) room.push_back(low + gap * (step + 1));
    return room;
}

void Track::renumber(std::initializer_list<Labels *> others) {
    const Labels old = labels;
    const auto renewed = [&old](Label label) { return SPACE * (bisect_left(old, label) + 1); };
    for (Label &label : labels) label = renewed(label);
    for (auto rows : {&runs, &reads})
        for (Labels &row : *rows)
            for (Label &label : row) label = renewed(label);
    for (Labels *row : others)
        for (Label &label : *row) label = renewed(label);
    end = SPACE * (count() + 1);
}

i64 Track::insert(Label label, i64 id) {
    const i64 at = rank(label);
    const i64 across = memory[at] - (at < count() ? own_[op[at]] : 0);
    memory.insert(memory.begin() + at, across + problem.workspace[id]);
    labels.insert(labels.begin() + at, label);
    op.insert(op.begin() + at, id);
    place.insert(place.begin() + at, -1);
    seconds += problem.seconds[id];
    for (i64 value : row(problem.inputs, id)) {
        const Life life = this->life(value, label);
        if (life.last < label) add(rank(life.before) + 1, at + 1, problem.size[value]);
        insort(reads[value], label);
    }
    for (i64 value : row(problem.made, id)) {
        const Life life = this->life(value, label);
        if (life.last > label)
            add(rank(life.before) + 1, at, -problem.size[value]);
        else
            memory[at] += problem.size[value];
    }
    insort(runs[id], label);
    return at;
}

void Track::erase(Label label) {
    const i64 at = rank(label), id = op[at];
    remove(runs[id], label);
    for (i64 value : row(problem.made, id)) {
        const Life life = this->life(value, label);
        if (life.last > label) add(rank(life.before) + 1, at, problem.size[value]);
    }
    for (i64 value : row(problem.inputs, id)) {
        remove(reads[value], label);
        const Life life = this->life(value, label);
        if (life.last < label) add(rank(life.before) + 1, at, -problem.size[value]);
    }
    memory.erase(memory.begin() + at);
    labels.erase(labels.begin() + at);
    op.erase(op.begin() + at);
    place.erase(place.begin() + at);
    seconds -= problem.seconds[id];
}

bool Track::serves(Label label) const {
    const i64 id = op[rank(label)];
    const Labels &made = runs[id];
    const auto next = std::upper_bound(made.begin(), made.end(), label);
    const Label stop = next != made.end() ? *next : end + 1;
    for (i64 value : row(problem.made, id)) {
        const auto read = std::upper_bound(reads[value].begin(), reads[value].end(), label);
        if (read != reads[value].end() && *read < stop) return true;
    }
    return false;
}
