#include "spans.h"

#include "profile.h"

Spans::Spans(const Problem &given, Ints schedule)
    : problem(&given), op(std::move(schedule)), length(static_cast<i64>(op.size())) {
    find_cells();
    find_memory();
    for (i64 id : op) seconds += problem->seconds[id];
}

void Spans::find_cells() {
    Ints cell_of(static_cast<std::size_t>(problem->values), -1), step_of(static_cast<std::size_t>(problem->ops), -1);
    i64 cells = 0, reads = problem->outputs;
    for (i64 id : op) {
        cells += problem->made.count(id);
        reads += problem->inputs.count(id);
    }
    cell_at.reserve(length + 1), read_at.reserve(length + 1), previous.reserve(length);
    cell_value.reserve(cells), cell_step.reserve(cells), last.reserve(cells);
    read_cell.reserve(reads), read_step.reserve(reads);
    for (i64 step = 0; step < length; ++step) {
        const i64 id = op[step];
        cell_at.push_back(static_cast<i64>(cell_value.size()));
        read_at.push_back(static_cast<i64>(read_cell.size()));
        for (i64 value : row(problem->inputs, id)) {
            read_cell.push_back(cell_of[value]), read_step.push_back(step);
            last[cell_of[value]] = step;
        }
        for (i64 value : row(problem->made, id)) {
            cell_of[value] = static_cast<i64>(cell_value.size());
            cell_value.push_back(value), cell_step.push_back(step), last.push_back(step);
        }
        previous.push_back(step_of[id]);
        step_of[id] = step;
    }
    cell_at.push_back(static_cast<i64>(cell_value.size()));
    read_at.push_back(static_cast<i64>(read_cell.size()));
    for (i64 at = 0; at < problem->outputs; ++at) {
        const i64 cell = cell_of[problem->output[at]];
        read_cell.push_back(cell), read_step.push_back(length);
        last[cell] = length;
    }
}

void Spans::find_memory() {
    memory.assign(length + 2, 0);
    for (std::size_t cell = 0; cell < cell_value.size(); ++cell) {
        const i64 size = problem->size[cell_value[cell]];
        memory[cell_step[cell]] += size;
        memory[last[cell] + 1] -= size;
    }
    i64 alive = 0;
    for (i64 step = 0; step < length; ++step) {
        alive += memory[step];
        memory[step] = alive + problem->workspace[op[step]];
    }
    memory.resize(length);
    peak = highest(memory.data(), 0, length);
}

void Spans::sort_reads(Ints &reader_at, Ints &reader) const {
    reader_at.assign(cell_value.size() + 1, 0);
    for (i64 cell : read_cell) ++reader_at[cell + 1];
    for (std::size_t cell = 0; cell < cell_value.size(); ++cell) reader_at[cell + 1] += reader_at[cell];
    Ints next(reader_at.begin(), reader_at.end() - 1);
    reader.resize(read_cell.size());
    for (std::size_t read = 0; read < read_cell.size(); ++read) reader[next[read_cell[read]]++] = read_step[read];
}

void Spans::recomputations(Ints &again, Ints &first, Ints &size) const {
    std::vector<char> is_read(cell_value.size(), 0);
    for (i64 cell : read_cell) is_read[cell] = 1;
    again.clear(), first.clear(), size.clear();
    for (i64 step = 0; step < length; ++step) {
        if (previous[step] < 0) continue;
        const i64 shift = cell_at[previous[step]] - cell_at[step];
        i64 begin = step, bytes = 0;
        for (i64 cell = cell_at[step]; cell < cell_at[step + 1]; ++cell) {
            if (!is_read[cell]) continue;
            begin = std::min(begin, last[cell + shift] + 1);
            bytes += problem->size[cell_value[cell]];
        }
        again.push_back(step), first.push_back(begin), size.push_back(bytes);
    }
}

std::vector<double> Spans::savings() const {
    Ints first(length, length), latest(length, -1);
    for (std::size_t read = 0; read < read_cell.size(); ++read) {
        const i64 source = cell_step[read_cell[read]], step = read_step[read];
        first[source] = std::min(first[source], step);
        latest[source] = std::max(latest[source], step);
    }
    std::vector<double> total(length);
    for (i64 step = 0; step < length; ++step) total[step] = problem->seconds[op[step]];
    for (i64 step = 0; step < length; ++step)
        if (previous[step] >= 0 && first[step] == latest[step] && latest[step] < length)
            total[latest[step]] += total[step];
    return total;
}

Spans without_idle(const Problem &problem, Ints schedule) {
    while (true) {
        Spans spans(problem, std::move(schedule));
        std::vector<char> serves(spans.length, 0);
        for (i64 cell : spans.read_cell) serves[spans.cell_step[cell]] = 1;
        schedule.clear();
        for (i64 step = 0; step < spans.length; ++step)
            if (spans.previous[step] < 0 || serves[step]) schedule.push_back(spans.op[step]);
        if (static_cast<i64>(schedule.size()) == spans.length) return spans;
    }
}
