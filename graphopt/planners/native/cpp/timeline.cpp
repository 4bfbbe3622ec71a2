#include "timeline.h"

#include <algorithm>

Timeline::Timeline(const Spans &spans)
    : memory(spans.memory), seconds(spans.seconds), previous(spans.previous), next(spans.length, -1),
      problem_(*spans.problem), op_(spans.op), reads_(spans.length, 0), cell_at_(spans.cell_at),
      step_of_(spans.cell_step), readers_(spans.cell_value.size()), sources_(spans.length), left_(spans.length),
      asked_(spans.length, 0) {
    for (i64 value : spans.cell_value) size_.push_back(problem_.size[value]);
    for (std::size_t read = 0; read < spans.read_cell.size(); ++read) {
        readers_[spans.read_cell[read]].push_back(spans.read_step[read]);
        ++reads_[spans.cell_step[spans.read_cell[read]]];
    }
    for (i64 step = 0; step < spans.length; ++step) {
        if (previous[step] < 0) continue;
        next[previous[step]] = step;
        sources_[step].assign(
            spans.read_cell.begin() + spans.read_at[step], spans.read_cell.begin() + spans.read_at[step + 1]);
    }
}

void Timeline::add_readers(i64 step, Ints &readers) const {
    for (i64 cell = cell_at_[step]; cell < cell_at_[step + 1]; ++cell)
        readers.insert(readers.end(), readers_[cell].begin(), readers_[cell].end());
}

void Timeline::gap(i64 step, i64 &first, i64 &bytes) const {
    const i64 before = previous[step], shift = cell_at_[before] - cell_at_[step];
    first = step, bytes = 0;
    for (i64 cell = cell_at_[step]; cell < cell_at_[step + 1]; ++cell) {
        if (readers_[cell].empty()) continue;
        bytes += size_[cell];
        const Ints &kept = readers_[cell + shift];
        first = std::min(first, (kept.empty() ? before : kept.back()) + 1);
    }
}

double Timeline::saving(i64 step) {
    double total = problem_.seconds[op_[step]];
    ++question_;
    const auto reads_left = [this](i64 source) -> i64 & {
        if (asked_[source] != question_) asked_[source] = question_, left_[source] = reads_[source];
        return left_[source];
    };
    reads_left(previous[step]) = i64{1} << 60;
    stack_.assign(1, step);
    for (std::size_t at = 0; at < stack_.size(); ++at) {
        for (i64 cell : sources_[stack_[at]]) {
            const i64 source = step_of_[cell];
            if (previous[source] < 0) continue;
            if (--reads_left(source) == 0 && stack_.size() < LIMIT) {
                total += problem_.seconds[op_[source]];
                stack_.push_back(source);
            }
        }
    }
    return total;
}

void Timeline::drop(i64 step, Ints &gone, Ints &changed) {
    std::size_t at = gone.size();
    gone.push_back(step);
    keep_alive(step);
    for (; at < gone.size(); ++at) {
        const i64 current = gone[at];
        unlink(current);
        // The next run of the same op now has another one before it.
        changed.push_back(previous[current]);
        for (i64 cell : sources_[current]) {
            lose_reader(cell, current);
            const i64 source = step_of_[cell];
            changed.push_back(source);
            if (reads_[source] || previous[source] < 0) continue;
            gone.push_back(source);
            i64 bytes = 0;
            for (i64 own = cell_at_[source]; own < cell_at_[source + 1]; ++own) bytes += size_[own];
            memory.add(source, source + 1, -bytes);
        }
    }
}

void Timeline::keep_alive(i64 step) {
    const i64 keeper = previous[step], shift = cell_at_[keeper] - cell_at_[step];
    for (i64 cell = cell_at_[step]; cell < cell_at_[step + 1]; ++cell) {
        Ints &readers = readers_[cell];
        if (readers.empty()) {
            memory.add(step, step + 1, -size_[cell]);
            continue;
        }
        Ints &kept = readers_[cell + shift];
        memory.add((kept.empty() ? keeper : kept.back()) + 1, step, size_[cell]);
        kept.insert(kept.end(), readers.begin(), readers.end());
        for (i64 reader : readers) {
            if (reader >= static_cast<i64>(sources_.size())) continue;  // the end
            Ints &sources = sources_[reader];
            const auto place = std::find(sources.begin(), sources.end(), cell);
            if (place != sources.end()) *place = cell + shift;
        }
        readers.clear();
    }
    reads_[keeper] += reads_[step];
    reads_[step] = 0;
}

void Timeline::unlink(i64 step) {
    memory.add(step, step + 1, -problem_.workspace[op_[step]]);
    seconds -= problem_.seconds[op_[step]];
    const i64 before = previous[step], after = next[step];
    next[before] = after;
    if (after >= 0) previous[after] = before;
}

void Timeline::lose_reader(i64 cell, i64 reader) {
    Ints &readers = readers_[cell];
    const i64 source = step_of_[cell];
    if (readers.back() == reader) {
        readers.pop_back();
        memory.add((readers.empty() ? source : readers.back()) + 1, reader + 1, -size_[cell]);
    } else {
        readers.erase(std::find(readers.begin(), readers.end(), reader));
    }
    --reads_[source];
}
